//! The example runs code in a real Python kernel and prints its output while the code runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Returns a Python interpreter with ipykernel, or `None` if there is none.
///
/// # Panics
///
/// If there is none on CI.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("KERNELMUX_TEST_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let found = Command::new(&python)
        .args(["-c", "import ipykernel"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(
        found || std::env::var_os("CI").is_none(),
        "{} has no ipykernel",
        python.display()
    );
    found.then_some(python)
}

#[test]
fn embed_prints_output_as_it_arrives() {
    let Some(python) = python() else {
        println!("skipped: there is no Python with ipykernel; set KERNELMUX_TEST_PYTHON");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().join("kernels").join("tested");
    std::fs::create_dir_all(&spec).unwrap();
    let python = python.to_str().unwrap();
    let json = format!(
        "{{\"argv\": [{python:?}, \"-m\", \"ipykernel_launcher\", \"-f\", \"{{connection_file}}\"], \
         \"display_name\": \"Tested\", \"language\": \"python\"}}"
    );
    std::fs::write(spec.join("kernel.json"), json).unwrap();
    let gate = dir.path().join("gate");
    let code = format!(
        "import os, time\nprint('first')\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\nprint('second')\n6 * 7"
    );
    let mut embed = Command::new(env!("CARGO_BIN_EXE_embed"))
        .args(["tested", &code])
        .env("JUPYTER_PATH", dir.path())
        .env("IPYTHONDIR", dir.path().join("ipython"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(embed.stdout.take().unwrap());
    let mut line = String::new();
    shown.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    // Lets the cell continue.
    std::fs::write(&gate, "").unwrap();
    let mut rest = String::new();
    shown.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\n42\n");
    assert!(embed.wait().unwrap().success());
}
