//! Support for ipykernel: its arguments, its startup code, and output without loss.

use kernelmux::log::Seq;
use kernelmux::{AtClose, ManagerOptions, StartRequest};
use serde_json::json;

use crate::fixture::{TestFolder, python, run, within_deadline};

/// Prints many lines, each as a separate message.
const FLOOD: &str = "for i in range(60_000):\n    print(i, flush=True)";

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_ten_times_the_kernels_queue_loses_nothing() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let text = run(&kernel, "for i in range(10_000): print(i, flush=True)").await;
    let expected: String = (0..10_000).map(|i| format!("{i}\n")).collect();
    assert!(text == expected, "{} of {} bytes arrived", text.len(), expected.len());
    // The setup request that prevents the loss leaves no trace in the user's namespace and history.
    assert_eq!(
        run(&kernel, "print([name for name in dir() if name[0] != '_'], In)").await,
        "['In', 'Out', 'exit', 'get_ipython', 'i', 'open', 'quit'] ['', 'for i in range(10_000): print(i, flush=True)', \"print([name for name in dir() if name[0] != '_'], In)\"]\n"
    );
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_has_exactly_the_arguments_of_its_kernelspec() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let argv = run(&kernel, "import sys; print(len(sys.argv), sys.argv[1:2])").await;
    assert_eq!(argv, "3 ['-f']\n");
    // Many notebooks parse the kernel's arguments.
    let parse = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('-f')\n\
                 print(parser.parse_args().f == sys.argv[2])";
    assert_eq!(run(&kernel, parse).await, "True\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_detects_jupyter_and_does_not_watch_its_parent() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let look = "import os, threading\nprint('JPY_PARENT_PID' in os.environ, \
                [thread for thread in threading.enumerate() if 'Poller' in type(thread).__name__])";
    assert_eq!(run(&kernel, look).await, "True []\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_code_of_profiles_and_kernelspecs_runs() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    let file = test_folder.folder.path().join("start.py");
    std::fs::write(&file, "from_file = 'file'\n").unwrap();
    let profile = test_folder.folder.path().join("ipython").join("profile_default");
    std::fs::create_dir_all(&profile).unwrap();
    std::fs::write(
        profile.join("ipython_kernel_config.py"),
        "c.IPKernelApp.code_to_run = \"from_profile = 'profile'\"\n",
    )
    .unwrap();
    let plain = json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    let with = |argument: &str| {
        let mut argv = plain.clone();
        argv.as_array_mut().unwrap().push(json!(argument));
        argv
    };
    test_folder.spec(
        "code",
        &with("--IPKernelApp.code_to_run=from_argv = 'argv'"),
        &json!({}),
    );
    test_folder.spec(
        "file",
        &with(&format!("--IPKernelApp.file_to_run={}", file.display())),
        &json!({}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("python3", "from_profile"),
        ("code", "from_argv"),
        ("file", "from_file"),
    ] {
        let mut request = StartRequest::new(spec);
        if spec == "python3" {
            let ipython = test_folder.folder.path().join("ipython");
            request
                .env
                .insert("IPYTHONDIR".to_owned(), ipython.to_str().unwrap().to_owned());
        }
        let kernel = within_deadline(manager.start(request)).await.unwrap();
        let printed = run(&kernel, &format!("print({expected})")).await;
        assert_eq!(printed.trim(), expected.trim_start_matches("from_"));
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_behind_a_wrapper_starts_and_loses_no_output() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(test_folder) = TestFolder::new() else { return };
    let wrapper = test_folder.folder.path().join("wrapper.sh");
    // `$@` is not quoted, as in many wrappers on clusters.
    std::fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec {} $@\n", python().unwrap().display()),
    )
    .unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    test_folder.spec(
        "wrapped",
        &json!([wrapper, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("wrapped")))
        .await
        .unwrap();
    let output = kernel.handle().output().await.unwrap();
    assert!(!output.contains("Error"), "{output}");
    for _ in 0..2 {
        let printed = run(&kernel, FLOOD).await;
        assert!(printed.lines().eq((0..60_000).map(|i| i.to_string())));
        // The setup has to be repeated for the new process.
        within_deadline(kernel.restart()).await.unwrap();
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_subscriber_leaves_no_trace_in_the_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    test_folder.spec(
        "untouched",
        &json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({"kernelmux": {"wait_for_subscriber": false}}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let look = "import sys\nshell = get_ipython()\n\
                print(shell.execution_count, In, Out, repr(_), repr(__), repr(_i), shell.history_manager.input_hist_raw)\n\
                print(sorted(globals()))\nprint(sorted(sys.modules))";
    let mut seen = Vec::new();
    for spec in ["untouched", "python3"] {
        let kernel = within_deadline(manager.start(StartRequest::new(spec))).await.unwrap();
        seen.push(run(&kernel, look).await);
        kernel.log().flushed().await;
        // The log does not contain the setup request, so clients do not receive it.
        let mut reader = kernel.log().reader(Seq(0));
        let mut last = Seq(0);
        while last < kernel.log().head() {
            for entry in within_deadline(reader.next()).await.unwrap().unwrap().entries() {
                last = entry.seq();
                let message = entry.message();
                let text = String::from_utf8_lossy(&message.parts_and_buffers().concat()).into_owned();
                assert!(!text.contains("XPUB_NODROP") && !text.contains("setup"), "{text}");
            }
        }
    }
    assert_eq!(seen[0], seen[1]);
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
