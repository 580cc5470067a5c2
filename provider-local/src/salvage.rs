//! Rebuilds the damaged record of a running kernel from its process and its connection file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use jupyter_protocol::kernelspec::{Kernelspec, SearchPath, get_kernelspec};
use jupyter_protocol::{Channel, ConnectionInfo};
use kernel_provider::KernelRecord;

use crate::process::stat::find_by_argument;
use crate::state::{KernelFiles, LaunchSpec, MAX_RECORD, SavedKernel, Stage};

/// Rebuilds a kernel's record as far as possible. Blocks the thread.
///
/// The kernelspec's `argv` is replaced by the process's command line. Returns `None` if no process has the connection
/// file on its command line.
pub(crate) fn salvage(files: &KernelFiles, provider: &str, search: &SearchPath) -> Option<SavedKernel> {
    let file = files.connection_file();
    let process = find_by_argument(&file)?;
    let of_process = |name: &str| PathBuf::from(format!("/proc/{}/{name}", process.pid));
    let connection = ConnectionInfo::read(&file).unwrap_or_default();
    let launched = fs::metadata(&file).and_then(|metadata| metadata.modified());
    let argv = texts(of_process("cmdline")).ok()?;
    let env: BTreeMap<String, String> = texts(of_process("environ"))
        .unwrap_or_default()
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let record = KernelRecord::new(
        provider,
        files.id,
        if connection.kernel_name.is_empty() {
            "unknown"
        } else {
            &connection.kernel_name
        },
        env.get("KERNEL_USERNAME").cloned(),
        launched.map_or_else(|_| Utc::now(), DateTime::from),
        serde_json::Value::Null,
    );
    // Only the kernelspec contains the rest, such as the interrupt mode.
    let installed = get_kernelspec(search, &record.spec).ok();
    let spec = Kernelspec {
        argv: argv
            .iter()
            .map(|argument| argument.replace(&*file.to_string_lossy(), "{connection_file}"))
            .collect(),
        display_name: record.spec.clone(),
        ..installed.map(|installed| installed.spec).unwrap_or_default()
    };
    Some(SavedKernel {
        start: LaunchSpec {
            spec_name: record.spec.clone(),
            spec,
            resource_dir: PathBuf::new(),
            env,
            working_dir: fs::read_link(of_process("cwd")).unwrap_or_else(|_| PathBuf::from("/")),
        },
        record,
        process: Some(process),
        output_from: 0,
        stage: Stage::Running,
    })
}

/// Whether a program listens on the shell socket in the connection file. Blocks the thread.
pub(crate) fn is_listened_on(files: &KernelFiles) -> bool {
    ConnectionInfo::read(files.connection_file()).is_ok_and(|connection| match connection.socket_path(Channel::Shell) {
        Some(path) => UnixStream::connect(path).is_ok(),
        None => TcpStream::connect((connection.ip.as_str(), connection.port(Channel::Shell))).is_ok(),
    })
}

/// Reads a file of NUL-terminated strings.
fn texts(path: PathBuf) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD).read_to_end(&mut bytes)?;
    let texts = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Ok(texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect())
}
