//! The files beside a `kernel.json`: logos and the front end's scripts.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::InstalledKernelspec;

/// How many entries of a resource folder are looked at.
const MAX_ENTRIES: usize = 1_000;

/// A resource that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// There is no such file.
    #[error("the kernelspec has no such resource; its model lists those that it has")]
    NotFound,
    /// The path leads, or might lead, out of the kernelspec's folder.
    #[error("the path leads out of the kernelspec's folder; ask for a file below it")]
    Outside,
}

impl InstalledKernelspec {
    /// The resources that front ends know, as key → file name: `kernel.js`, `kernel.css`, and each `logo-*` under its
    /// name without the extension.
    ///
    /// Blocks on the file system.
    #[must_use]
    pub fn resources(&self) -> BTreeMap<String, String> {
        let mut resources = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(&self.resource_dir) else {
            return resources;
        };
        for entry in entries.flatten().take(MAX_ENTRIES) {
            let file = entry.file_name();
            let (Some(file), Some(stem)) = (file.to_str(), Path::new(&file).file_stem()) else {
                continue;
            };
            let key = match file {
                "kernel.js" | "kernel.css" => file,
                _ if file.starts_with("logo-") => match stem.to_str() {
                    Some(stem) => stem,
                    None => continue,
                },
                _ => continue,
            };
            if entry.path().is_file() {
                resources.insert(key.to_owned(), file.to_owned());
            }
        }
        resources
    }

    /// The path of a resource file, for `GET /kernelspecs/{name}/{path}`.
    ///
    /// `relative` comes from a client and is not trusted: it must be plain names joined by `/`, and the file that it
    /// leads to, symbolic links followed, must be a regular file in the kernelspec's folder. Blocks on the file system.
    ///
    /// # Errors
    /// [`ResourceError::Outside`] where it leads elsewhere, [`ResourceError::NotFound`] where there is no such file.
    pub fn resource(&self, relative: &str) -> Result<PathBuf, ResourceError> {
        let is_plain = Path::new(relative)
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        if !is_plain || relative.contains(['\\', ':', '\0']) {
            return Err(ResourceError::Outside);
        }
        let not_found = |_| ResourceError::NotFound;
        let root = self.resource_dir.canonicalize().map_err(not_found)?;
        let path = root.join(relative).canonicalize().map_err(not_found)?;
        if !path.starts_with(&root) {
            return Err(ResourceError::Outside);
        }
        if !path.is_file() {
            return Err(ResourceError::NotFound);
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernelspec::{Kernelspec, kernelspecs_model};

    fn with_files(files: &[&str]) -> (tempfile::TempDir, InstalledKernelspec) {
        let dir = tempfile::tempdir().unwrap();
        let resource_dir = dir.path().join("spec");
        std::fs::create_dir_all(resource_dir.join("sub")).unwrap();
        for file in files {
            std::fs::write(resource_dir.join(file), file).unwrap();
        }
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let installed = InstalledKernelspec {
            name: "r.4".into(),
            spec: Kernelspec::default(),
            resource_dir,
        };
        (dir, installed)
    }

    #[test]
    fn the_model_lists_what_front_ends_know() {
        let (_dir, installed) = with_files(&[
            "kernel.js",
            "kernel.json",
            "logo-64x64.png",
            "logo-svg.svg",
            "logo-a b.png",
            "sub/logo-no.png",
        ]);
        let model = kernelspecs_model("r.4", [&installed], "/base/");
        assert_eq!(model["default"], "r.4");
        let resources = &model["kernelspecs"]["r.4"]["resources"];
        assert_eq!(
            resources,
            &serde_json::json!({
                "kernel.js": "/base/kernelspecs/r.4/kernel.js",
                "logo-64x64": "/base/kernelspecs/r.4/logo-64x64.png",
                "logo-a b": "/base/kernelspecs/r.4/logo-a%20b.png",
                "logo-svg": "/base/kernelspecs/r.4/logo-svg.svg",
            })
        );
        assert_eq!(
            model["kernelspecs"]["r.4"]["spec"],
            serde_json::json!({
                "argv": [], "env": {}, "display_name": "", "language": "", "interrupt_mode": "signal",
                "metadata": {}, "kernel_protocol_version": "",
            })
        );
        assert_eq!(
            installed.model("/")["resources"]["kernel.js"],
            "/kernelspecs/r.4/kernel.js"
        );
    }

    #[test]
    fn no_path_leads_out() {
        let (_dir, installed) = with_files(&["logo-svg.svg", "sub/file"]);
        assert!(
            installed
                .resource("logo-svg.svg")
                .unwrap()
                .ends_with("spec/logo-svg.svg")
        );
        assert!(installed.resource("sub/file").is_ok());
        for path in [
            "../secret",
            "/etc/passwd",
            "sub/../../secret",
            "./file",
            "..",
            "a\\..\\b",
            "C:secret",
            "a\0b",
            "..\\secret",
        ] {
            assert_eq!(installed.resource(path), Err(ResourceError::Outside), "{path:?}");
        }
        for path in ["", "sub", "none", "logo-svg.svg/x"] {
            assert_eq!(installed.resource(path), Err(ResourceError::NotFound), "{path:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_that_leave_the_folder_are_refused_and_others_followed() {
        use std::os::unix::fs::symlink;
        let (dir, installed) = with_files(&["logo-svg.svg"]);
        let root = &installed.resource_dir;
        symlink(dir.path().join("secret"), root.join("out")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink("logo-svg.svg", root.join("in")).unwrap();
        assert_eq!(installed.resource("out"), Err(ResourceError::Outside));
        assert_eq!(installed.resource("up/secret"), Err(ResourceError::Outside));
        assert!(installed.resource("in").is_ok());
        // The folder itself may be a link, as package managers make them.
        let linked = dir.path().join("linked");
        symlink(root, &linked).unwrap();
        let installed = InstalledKernelspec {
            resource_dir: linked,
            ..installed.clone()
        };
        assert!(installed.resource("logo-svg.svg").is_ok());
    }
}
