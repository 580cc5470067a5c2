//! What is known of the Python kernel beyond its kernelspec. For those who write a provider.

use jupyter_protocol::Kernelspec;
use serde_json::Value;

use super::own_metadata;

/// Makes iopub's socket wait for its subscriber where that falls behind. As ipykernel sets it up it drops whatever
/// comes after 1,000 messages, a cell's last ones and its `idle` included, before anybody can record them.
///
/// It runs in the thread that owns the socket, and leaves no name behind. As `code_to_run` it goes over nothing that
/// users set in their profiles, which `exec_lines` would.
const WAIT_FOR_SUBSCRIBER: &str = "--IPKernelApp.code_to_run=(lambda app: app.iopub_thread.schedule(lambda: \
     app.iopub_thread.socket.setsockopt(__import__('zmq').XPUB_NODROP, 1)))\
     (__import__('ipykernel.kernelapp').kernelapp.IPKernelApp.instance())";

/// Whether the kernelspec starts ipykernel.
#[must_use]
pub fn starts_ipykernel(spec: &Kernelspec) -> bool {
    spec.argv
        .iter()
        .any(|arg| matches!(arg.as_str(), "ipykernel_launcher" | "ipykernel"))
}

/// An argument for the end of the command that makes the kernel drop no output; none for other kernels, for one whose
/// kernelspec says `metadata.kernelmux.wait_for_subscriber: false`, and for one that is given code to run already.
#[must_use]
pub fn lossless_argument(spec: &Kernelspec) -> Option<&'static str> {
    let refused = own_metadata(spec, "wait_for_subscriber") == Some(&Value::Bool(false));
    let has_code = spec.argv.iter().any(|arg| arg == "-c" || arg.contains(".code_to_run"));
    (starts_ipykernel(spec) && !refused && !has_code).then_some(WAIT_FOR_SUBSCRIBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(argv: &[&str], metadata: &Value) -> Kernelspec {
        serde_json::from_value(serde_json::json!({
            "argv": argv, "display_name": "", "language": "", "metadata": metadata
        }))
        .unwrap()
    }

    #[test]
    fn only_ipykernel_is_told_to_wait_and_a_kernelspec_can_refuse() {
        let ipykernel = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
        let none = serde_json::json!({});
        assert!(lossless_argument(&spec(&ipykernel, &none)).is_some());
        assert!(lossless_argument(&spec(&["python", "-m", "bash_kernel"], &none)).is_none());
        let refusing = serde_json::json!({"kernelmux": {"wait_for_subscriber": false}});
        assert!(lossless_argument(&spec(&ipykernel, &refusing)).is_none());
        let with_code = ["python", "-m", "ipykernel", "--IPKernelApp.code_to_run=1"];
        assert!(lossless_argument(&spec(&with_code, &none)).is_none());
    }
}
