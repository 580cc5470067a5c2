/// A task for code in a kernel, with which a case observes how the provider runs the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Probe {
    /// Print the value of this environment variable, and nothing else, on standard output.
    PrintVariable(String),
    /// Print the working directory, and nothing else, on standard output.
    PrintWorkingDir,
    /// Print `running` on standard output repeatedly until interrupted. A client may miss text that is printed before
    /// it has subscribed.
    WaitForInterrupt,
    /// Start another process, which runs for minutes at least and shows up in
    /// [`leftovers`](super::Subject::leftovers), and print `started` on standard output.
    StartProcess,
}

impl Probe {
    /// The code for ipykernel. The command line of the process that it starts ends with the kernel's own arguments,
    /// including the connection file.
    #[must_use]
    pub fn in_python(&self) -> String {
        match self {
            Self::PrintVariable(name) => format!("import os; print(os.environ[{name:?}], end='')"),
            Self::PrintWorkingDir => "import os; print(os.getcwd(), end='')".to_owned(),
            Self::WaitForInterrupt => "import time\n\
                while True:\n    print('running', end='', flush=True)\n    time.sleep(0.05)"
                .to_owned(),
            Self::StartProcess => "import subprocess, sys\n\
                subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', *sys.argv])\n\
                print('started', end='')"
                .to_owned(),
        }
    }
}
