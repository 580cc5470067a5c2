//! The example with a real Python kernel.

use std::process::Command;

#[test]
fn resume_prints_all_lines_in_spite_of_a_cut_connection() {
    let python = std::env::var("KERNELMUX_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_kernel = Command::new(&python).args(["-c", "import ipykernel"]).output();
    if !has_kernel.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "{python} has no ipykernel");
        println!("skipped: {python} has no ipykernel; set KERNELMUX_TEST_PYTHON");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("kernels/python3");
    std::fs::create_dir_all(&spec).unwrap();
    let kernel = serde_json::json!({
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python",
        "language": "python",
    });
    std::fs::write(spec.join("kernel.json"), kernel.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_resume"))
        .env("JUPYTER_PATH", folder.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        " 38 39 40 ",
        "The connection is cut",
        "Resumed after entry",
        " 98 99 100 ",
        "All 100 lines arrived",
    ] {
        assert!(stdout.contains(part), "{part:?} is not in:\n{stdout}");
    }
}
