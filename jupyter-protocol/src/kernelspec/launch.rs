//! Command line and environment of a kernel from its kernelspec.

use std::collections::BTreeMap;
use std::env::consts::EXE_SUFFIX;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{InstalledKernelspec, python_prefix};

/// Values for the templates in a kernelspec's `argv`.
#[derive(Clone, Debug, Default)]
pub struct LaunchArgs<'a> {
    /// Value of `{connection_file}`: the absolute path of the file.
    pub connection_file: &'a str,
    /// Value of `{prefix}`: a Python `sys.prefix`. Default: the prefix that the kernelspec is installed in, if any.
    pub prefix: Option<&'a str>,
    /// Interpreter that replaces a bare `python`, `python3` or `python3.X` in `argv`.
    ///
    /// `jupyter_client` uses the Python that runs it, which a Rust program does not have. Default: the interpreter that
    /// [`InstalledKernelspec::python`] finds, else one in `search_path`.
    pub python: Option<&'a str>,
    /// `PATH` of the kernel's environment, in which a bare Python name is looked up as a last resort.
    ///
    /// After the name itself, `python3` and `python` are tried: ipykernel's own kernelspec names `python`, which many
    /// systems do not have. The name is kept if none of these exists, or if `search_path` is `None`.
    pub search_path: Option<&'a OsStr>,
    /// Values of further templates, by name. They take precedence over the ones above.
    pub extra: BTreeMap<&'a str, &'a str>,
}

impl InstalledKernelspec {
    /// Returns the command line that starts the kernel, empty if the kernelspec has none.
    ///
    /// Replaces `{connection_file}`, `{resource_dir}`, `{prefix}` and the names in `args.extra`. A template without a
    /// value is kept. Blocks on the file system to find the interpreter.
    #[must_use]
    pub fn argv(&self, args: &LaunchArgs<'_>) -> Vec<String> {
        let resource_dir = self.resource_dir.to_string_lossy();
        let own_prefix = python_prefix(&self.resource_dir).map(Path::to_string_lossy);
        let value = |name: &str| match name {
            _ if args.extra.contains_key(name) => args.extra.get(name).copied(),
            "connection_file" => Some(args.connection_file),
            "resource_dir" => Some(&*resource_dir),
            "prefix" => args.prefix.or(own_prefix.as_deref()),
            _ => None,
        };
        let mut argv: Vec<String> = self.spec.argv.iter().map(|arg| fill_template(arg, &value)).collect();
        if let Some(command) = argv.first_mut()
            && is_bare_python(command)
        {
            let python = args.python.map(str::to_owned).or_else(|| {
                let found = self
                    .python(command)
                    .or_else(|| find_in_path(args.search_path?, command))?;
                Some(found.to_string_lossy().into_owned())
            });
            if let Some(python) = python {
                *command = python;
            }
        }
        argv
    }

    /// Returns the Python interpreter of the prefix that the kernelspec is installed in, if it exists.
    ///
    /// The prefix of a kernelspec in `P/share/jupyter/kernels/NAME` is `P`. On Unix, the names `command` (such as
    /// `python3.12`), `python3` and `python` are tried in this order in `P/bin`; on Windows, `python.exe` in
    /// `P\Scripts` and `P`. Blocks on the file system.
    #[must_use]
    pub fn python(&self, command: &str) -> Option<PathBuf> {
        let prefix = python_prefix(&self.resource_dir)?;
        let names = [command, "python3", "python"];
        let candidates: Vec<PathBuf> = if cfg!(windows) {
            vec![prefix.join("Scripts").join("python.exe"), prefix.join("python.exe")]
        } else {
            names.iter().map(|name| prefix.join("bin").join(name)).collect()
        };
        candidates.into_iter().find(|path| path.is_file())
    }
}

/// Returns the first of `command`, `python3` and `python` that exists in a directory of `path`.
fn find_in_path(path: &OsStr, command: &str) -> Option<PathBuf> {
    [command, "python3", "python"].iter().find_map(|name| {
        std::env::split_paths(path)
            .map(|dir| dir.join(format!("{name}{EXE_SUFFIX}")))
            .find(|path| path.is_absolute() && path.is_file())
    })
}

/// Returns whether `command` is `python`, `python3` or `python3.` with a minor version, without a path.
fn is_bare_python(command: &str) -> bool {
    command.strip_prefix("python").is_some_and(|version| {
        version.is_empty()
            || version == "3"
            || version
                .strip_prefix("3.")
                .is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Replaces each `{name}` (ASCII letters, digits and `_`) that has a value.
fn fill_template<'a>(template: &str, value: &impl Fn(&str) -> Option<&'a str>) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        rest = &rest[open..];
        let name_len = rest[1..]
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
            .count();
        let end = 1 + name_len;
        let value = (name_len > 0 && rest[end..].starts_with('}'))
            .then(|| value(&rest[1..end]))
            .flatten();
        match value {
            Some(value) => {
                filled.push_str(value);
                rest = &rest[end + 1..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// Replaces `$NAME` and `${NAME}` with the value of `lookup`, and `$$` with `$`. References without a value are kept.
///
/// `jupyter_client` expands the values of a kernelspec's `env` in this way, from the environment in which it starts the
/// kernel.
#[must_use]
pub fn expand_env(template: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match rest.strip_prefix('{') {
            Some(braced) => {
                let len = name_len(braced);
                (&braced[..len], braced[len..].strip_prefix('}'))
            }
            None => {
                let len = name_len(rest);
                (&rest[..len], Some(&rest[len..]))
            }
        };
        match after {
            Some(after) if !name.is_empty() => {
                match lookup(name) {
                    Some(value) => expanded.push_str(&value),
                    None => {
                        expanded.push('$');
                        expanded.push_str(&rest[..rest.len() - after.len()]);
                    }
                }
                rest = after;
            }
            _ => expanded.push('$'),
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Returns the length of the variable name at the start of the text: `[A-Za-z_][A-Za-z0-9_]*`.
fn name_len(text: &str) -> usize {
    if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    text.bytes()
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernelspec::Kernelspec;

    fn installed(resource_dir: &Path, argv: &[&str]) -> InstalledKernelspec {
        InstalledKernelspec {
            name: "python3".into(),
            spec: Kernelspec {
                argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Kernelspec::default()
            },
            resource_dir: resource_dir.to_owned(),
        }
    }

    #[test]
    fn templates_are_filled_and_unknown_ones_kept() {
        let spec = installed(
            Path::new("/opt/share/jupyter/kernels/r"),
            &[
                "R",
                "-f={connection_file}",
                "{resource_dir}/x{prefix}",
                "{port}{unknown}{}{a b}{",
                "ü{connection_file}ü",
            ],
        );
        let args = LaunchArgs {
            connection_file: "/run/k.json",
            extra: [("port", "7")].into(),
            ..LaunchArgs::default()
        };
        assert_eq!(
            spec.argv(&args),
            [
                "R",
                "-f=/run/k.json",
                "/opt/share/jupyter/kernels/r/x/opt",
                "7{unknown}{}{a b}{",
                "ü/run/k.jsonü"
            ]
        );
    }

    #[test]
    fn a_bare_python_resolves_to_the_interpreter_of_the_kernelspecs_prefix() {
        let prefix = tempfile::tempdir().unwrap();
        let resource_dir = prefix.path().join("share/jupyter/kernels/python3");
        let argv = |command: &str, python| {
            let args = LaunchArgs {
                python,
                ..LaunchArgs::default()
            };
            installed(&resource_dir, &[command, "-m"]).argv(&args).remove(0)
        };
        assert_eq!(argv("python3", None), "python3");
        assert_eq!(argv("python3", Some("/usr/bin/python3")), "/usr/bin/python3");
        #[cfg(unix)]
        {
            let bin = prefix.path().join("bin");
            std::fs::create_dir(&bin).unwrap();
            std::fs::write(bin.join("python3"), "").unwrap();
            let own = bin.join("python3").to_string_lossy().into_owned();
            assert_eq!(argv("python", None), own);
            assert_eq!(argv("python3", None), own);
            assert_eq!(argv("python3.12", None), own);
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let alone = installed(elsewhere.path(), &["python"]);
        let path = std::env::join_paths([Path::new("bin"), &elsewhere.path().join("none"), elsewhere.path()]).unwrap();
        let args = LaunchArgs {
            search_path: Some(&path),
            ..LaunchArgs::default()
        };
        assert_eq!(alone.argv(&args), ["python"]);
        for name in ["python3", "python"] {
            let program = elsewhere.path().join(format!("{name}{EXE_SUFFIX}"));
            std::fs::write(&program, "").unwrap();
            assert_eq!(alone.argv(&args), [program.to_string_lossy()]);
        }
        for other in ["/usr/bin/python3", "pythonista", "python2", "python3.", "python3.x"] {
            assert_eq!(argv(other, Some("/mine")), other);
        }
    }

    #[test]
    fn variables_are_expanded_as_in_python_templates() {
        let lookup = |name: &str| match name {
            "HOME" => Some("/h".to_owned()),
            "_x1" => Some("$HOME".to_owned()),
            _ => None,
        };
        for (template, expected) in [
            ("plain", "plain"),
            ("${HOME}/bin:$HOME", "/h/bin:/h"),
            ("$_x1", "$HOME"),
            ("$$HOME", "$HOME"),
            ("${NOT_SET}-$NOT_SET", "${NOT_SET}-$NOT_SET"),
            ("${HOME", "${HOME"),
            ("${}", "${}"),
            ("$1 $", "$1 $"),
            ("ä$HOMEä", "ä/hä"),
        ] {
            assert_eq!(expand_env(template, lookup), expected, "{template}");
        }
    }
}
