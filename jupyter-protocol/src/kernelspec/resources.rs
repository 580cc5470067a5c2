//! Resource files in the folder of a `kernel.json`: logos and scripts for the front end.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::InstalledKernelspec;

/// Maximum number of entries that are searched in a resource folder.
const MAX_ENTRIES: usize = 1_000;

/// Error of finding a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The file does not exist.
    #[error("the kernelspec has no such resource; its model lists those that it has")]
    NotFound,
    /// The path leads, or may lead, out of the folder of the kernelspec.
    #[error("the path leads out of the folder of the kernelspec; request a file within it")]
    Outside,
}

impl InstalledKernelspec {
    /// Returns the file names of the resources that front ends use, by key.
    ///
    /// These are `kernel.js`, `kernel.css`, and each `logo-*`, whose key is its name without the extension.
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

    /// Returns the path of a resource file, for `GET /kernelspecs/{name}/{path}`.
    ///
    /// `relative` may come from an untrusted client. It must consist of plain names joined by `/`. The file, after
    /// following symbolic links, must be a regular file in the folder of the kernelspec. Blocks on the file system.
    ///
    /// # Errors
    /// - [`ResourceError::Outside`] if the path leads, or may lead, out of the folder.
    /// - [`ResourceError::NotFound`] if there is no such regular file.
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
    fn the_model_lists_the_resources_that_front_ends_use() {
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
    fn paths_cannot_leave_the_folder() {
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
    fn links_that_leave_the_folder_are_rejected_and_others_followed() {
        use std::os::unix::fs::symlink;
        let (dir, installed) = with_files(&["logo-svg.svg"]);
        let root = &installed.resource_dir;
        symlink(dir.path().join("secret"), root.join("out")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink("logo-svg.svg", root.join("in")).unwrap();
        assert_eq!(installed.resource("out"), Err(ResourceError::Outside));
        assert_eq!(installed.resource("up/secret"), Err(ResourceError::Outside));
        assert!(installed.resource("in").is_ok());
        // The folder itself may be a link, as some package managers create.
        let linked = dir.path().join("linked");
        symlink(root, &linked).unwrap();
        let installed = InstalledKernelspec {
            resource_dir: linked,
            ..installed.clone()
        };
        assert!(installed.resource("logo-svg.svg").is_ok());
    }
}
