//! Finding a connection file by path, name, pattern or kernel id.

use std::path::PathBuf;

use super::{ConnectionFileError, ConnectionInfo};
use crate::paths::PathEnv;

impl ConnectionInfo {
    /// Finds a connection file as `jupyter console --existing` does and returns its path.
    ///
    /// `wanted` is a path, the name of a file in the working directory or in [`PathEnv::runtime_dir`], a glob pattern
    /// with at least one `*` for the name, or a part of the name, such as a kernel id. If several files match, the most
    /// recently modified one is returned.
    ///
    /// Blocks on the file system. Any path is accepted, so `wanted` must not come from an untrusted client.
    ///
    /// # Errors
    /// [`ConnectionFileError::NotFound`] if no file matches.
    pub fn find(wanted: &str, env: &PathEnv) -> Result<PathBuf, ConnectionFileError> {
        let searched = [PathBuf::from("."), env.runtime_dir()];
        for dir in &searched {
            // Joining with an absolute path results in that path.
            let path = dir.join(wanted);
            if path.is_file() {
                return Ok(path);
            }
        }
        let pattern = if wanted.contains('*') {
            wanted.to_owned()
        } else {
            format!("*{wanted}*")
        };
        searched
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                !name.starts_with('.') && glob_matches(&pattern, &name) && entry.path().is_file()
            })
            .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())
            .map(|entry| entry.path())
            .ok_or_else(|| ConnectionFileError::NotFound {
                wanted: wanted.to_owned(),
                searched: searched.into(),
            })
    }
}

/// Returns whether `name` matches a glob pattern, in which `*` is any text and `?` is any character.
pub(crate) fn glob_matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Positions to backtrack to if the text after the last `*` does not match here.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, at)) => {
                    retry = Some((after_star, at + 1));
                    p = after_star;
                    n = at + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_files_by_path_name_pattern_and_part_and_prefers_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let env = PathEnv::new([("JUPYTER_RUNTIME_DIR", dir.path())], "/nonexistent");
        let file = |name: &str, age: u64| {
            let path = dir.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age))
                .unwrap();
            path
        };
        let old = file("kernel-aaa-1.json", 500);
        let new = file("kernel-bbb-2.json", 100);
        file(".hidden-kernel-ccc.json", 0);
        let find = |wanted: &str| ConnectionInfo::find(wanted, &env).unwrap();
        assert_eq!(find(old.to_str().unwrap()), old);
        assert_eq!(find("kernel-aaa-1.json"), old);
        assert_eq!(find("aaa"), old);
        assert_eq!(find("kernel-*.json"), new);
        assert_eq!(find("kernel-"), new);
        assert!(matches!(
            ConnectionInfo::find("zzz", &env),
            Err(ConnectionFileError::NotFound { .. })
        ));
    }

    #[test]
    fn glob_patterns_match_any_text_and_any_character() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("kernel-*.json", "kernel-1.json", true),
            ("kernel-*.json", "kernel-1.jso", false),
            ("*a*b", "xaab", true),
            ("*ab", "aab", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(glob_matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
