//! The audit log: one line of JSON for each act of a user, without output, and without code unless it is switched on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::MatchedPath;
use axum::http::request::Parts;
use axum::http::{Extensions, Method, StatusCode, header};
use axum::response::Response;
use chrono::{SecondsFormat, Utc};
use jupyter_protocol::{Channel, WireMessage};
use kernel_manager::{Kernel, KernelEvent, KernelEventKind};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::Gateway;
use crate::identity::Identity;
use crate::request_log::RequestId;
use crate::shares::Share;
use crate::trusted_header::PeerAddress;

/// How many lines may wait for the disk. Beyond that, requests wait.
const QUEUE: usize = 1_024;
/// How many characters of an id in a path are recorded.
const MAX_ID: usize = 64;
/// How many bytes of code are recorded for an execution.
const MAX_CODE: usize = 64 << 10;

/// Where the audit log is, and how much of it is kept.
///
/// ```
/// use kernelmux_gateway::AuditOptions;
///
/// let options = AuditOptions::new("audit.jsonl").with_max_bytes(64 << 20).with_files(10);
/// assert_eq!(options.files, 10);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditOptions {
    /// The file. It is only appended to, and readable for this user only.
    pub path: PathBuf,
    /// The size in bytes at which the file is renamed and another one begun.
    pub max_bytes: u64,
    /// How many renamed files are kept, with `.1` appended to the path of the newest one.
    pub files: usize,
    /// Whether the code that users run is recorded, up to 64 KiB of each execution.
    pub code: bool,
}

impl AuditOptions {
    /// Files of 64 MiB without code, of which ten are kept in addition to the current one.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_bytes: 64 << 20,
            files: 10,
            code: false,
        }
    }

    /// Sets the size of a file in bytes.
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets how many renamed files are kept.
    #[must_use]
    pub fn with_files(mut self, files: usize) -> Self {
        self.files = files;
        self
    }

    /// Sets whether code is recorded.
    #[must_use]
    pub fn with_code(mut self, code: bool) -> Self {
        self.code = code;
        self
    }
}

/// An audit log. Clones share it.
#[derive(Clone, Debug)]
pub struct AuditLog {
    has_code: bool,
    queue: mpsc::Sender<Item>,
    failures: Arc<AtomicU64>,
}

enum Item {
    Line(Vec<u8>),
    /// Answered once everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Act {
    Start,
    Stop,
    Interrupt,
    Restart,
    /// A WebSocket.
    Attach,
    /// Outputs, executions or comms were read.
    Read,
    Run,
    /// Code that a user runs, if code is recorded.
    Execute,
    /// A share was made.
    Share,
    /// Somebody with the link of a share viewed its page.
    View,
    /// A share was ended, or shares were listed.
    ManageShares,
    RemoveLog,
    ChangeSession,
    /// A kernel was ended by the gateway.
    Culled,
    /// A kernel ended by itself.
    Died,
    /// A user was added, changed or removed.
    Users,
    /// Settings were reloaded.
    Settings,
    /// Anything else that was refused.
    Other,
}

/// What a request does; `None` for requests that are recorded only if they are refused.
pub(crate) fn act_of(method: &Method, route: &str) -> Option<Act> {
    Some(match (method, route) {
        (&Method::POST, "/api/kernels" | "/api/sessions") => Act::Start,
        (&Method::DELETE, "/api/kernels/{id}" | "/api/sessions/{id}") => Act::Stop,
        (&Method::POST, "/api/kernels/{id}/interrupt") => Act::Interrupt,
        (&Method::POST, "/api/kernels/{id}/restart") => Act::Restart,
        (&Method::GET, "/api/kernels/{id}/channels") => Act::Attach,
        (&Method::POST, "/api/kernels/{id}/executions") => Act::Run,
        (&Method::POST, "/api/kernels/{id}/shares") => Act::Share,
        (_, "/api/kernels/{id}/shares" | "/api/kernels/{id}/shares/{share}") => Act::ManageShares,
        (&Method::DELETE, "/api/logs/{id}") => Act::RemoveLog,
        (&Method::PATCH, "/api/sessions/{id}") => Act::ChangeSession,
        (
            &Method::GET,
            "/api/kernels/{id}/log"
            | "/api/kernels/{id}/comms"
            | "/api/kernels/{id}/executions"
            | "/api/kernels/{id}/executions/{msg_id}",
        ) => Act::Read,
        _ => return None,
    })
}

/// A line of the audit log.
#[derive(Debug, Serialize)]
struct Record<'a> {
    act: Act,
    /// The user; absent for the shared token, and for acts of the gateway itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    /// The kernel's id, or the session's.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// The kernel's owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    /// The method and the route of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// The status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(flatten)]
    execution: Option<Execution<'a>>,
}

/// Code that a user runs.
#[derive(Debug, Serialize)]
struct Execution<'a> {
    msg_id: &'a str,
    code: &'a str,
    /// The length of the whole code, if only its beginning is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    code_bytes: Option<usize>,
}

impl Record<'_> {
    /// A record of an act of the gateway itself.
    fn of_gateway(act: Act) -> Self {
        Self {
            act,
            user: None,
            role: None,
            address: None,
            id: None,
            owner: None,
            request: None,
            request_id: None,
            status: None,
            detail: None,
            execution: None,
        }
    }

    fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            #[serde(flatten)]
            record: &'a Record<'a>,
        }
        let time = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        // Texts and numbers can always be written.
        let mut line = serde_json::to_vec(&Line { time, record: self }).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The parts of a request that are recorded.
pub(crate) struct AuditedRequest {
    method: Method,
    route: Option<MatchedPath>,
    id: String,
    address: Option<IpAddr>,
    request_id: Option<RequestId>,
}

impl AuditedRequest {
    pub(crate) fn new(request: &Parts) -> Self {
        let id = request.uri.path().split('/').nth(3).unwrap_or_default();
        Self {
            method: request.method.clone(),
            route: request.extensions.get::<MatchedPath>().cloned(),
            id: id.chars().take(MAX_ID).collect(),
            address: request.extensions.get::<PeerAddress>().map(|peer| peer.0),
            request_id: request.extensions.get::<RequestId>().cloned(),
        }
    }

    /// The line for the request with its answer, if it is an act or was refused.
    pub(crate) fn line(self, gateway: &Gateway, caller: Option<&Identity>, response: &Response) -> Option<Vec<u8>> {
        let route = self.route.as_ref().map_or("", MatchedPath::as_str);
        let act = act_of(&self.method, route);
        let status = response.status();
        let is_refused = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
        );
        if act.is_none() && !is_refused {
            return None;
        }
        // The address of a new kernel or session ends with its id.
        let made = response.headers().get(header::LOCATION);
        let made = made.and_then(|made| made.to_str().ok()?.rsplit('/').next());
        let id = made.filter(|_| act == Some(Act::Start)).unwrap_or(&self.id);
        let kernel = id.parse().ok().and_then(|id| gateway.manager.get(id));
        let record = Record {
            act: act.unwrap_or(Act::Other),
            user: caller.and_then(|caller| caller.name.as_deref()),
            role: caller.map(|caller| caller.role.as_str()),
            address: self.address,
            id: Some(id).filter(|id| !id.is_empty()),
            owner: kernel.as_ref().and_then(|kernel| kernel.owner()),
            request: Some(format!("{} {route}", self.method)),
            request_id: self.request_id.as_ref().map(RequestId::as_str),
            status: Some(status.as_u16()),
            detail: None,
            execution: None,
        };
        Some(record.line())
    }
}

/// Records the code that a client runs.
pub(crate) struct CodeAudit {
    log: AuditLog,
    caller: Arc<Identity>,
    address: Option<IpAddr>,
    request_id: Option<RequestId>,
    id: String,
    owner: Option<String>,
}

impl CodeAudit {
    /// For the client that sent a request with these extensions; `None` if code is not recorded.
    pub(crate) fn new(gateway: &Gateway, request: &Extensions, kernel: &Kernel) -> Option<Self> {
        Some(Self {
            log: gateway.options().audit.clone().filter(|log| log.has_code)?,
            caller: request.get::<Arc<Identity>>()?.clone(),
            address: request.get::<PeerAddress>().map(|peer| peer.0),
            request_id: request.get::<RequestId>().cloned(),
            id: kernel.id().to_string(),
            owner: kernel.owner().map(str::to_owned),
        })
    }

    /// Records the message if it is an `execute_request`.
    pub(crate) async fn message(&self, channel: Channel, message: &WireMessage) {
        let Ok(header) = message.header_ref() else { return };
        if channel != Channel::Shell || header.msg_type != "execute_request" {
            return;
        }
        #[derive(Deserialize)]
        struct Request {
            code: String,
        }
        // A kernel refuses a request without code.
        if let Ok(Request { code }) = serde_json::from_slice(message.content()) {
            self.code(&header.msg_id, &code).await;
        }
    }

    async fn code(&self, msg_id: &str, code: &str) {
        let shown = &code[..code.floor_char_boundary(MAX_CODE)];
        let record = Record {
            user: self.caller.name.as_deref(),
            role: Some(self.caller.role.as_str()),
            address: self.address,
            id: Some(&self.id),
            owner: self.owner.as_deref(),
            request_id: self.request_id.as_ref().map(RequestId::as_str),
            execution: Some(Execution {
                msg_id,
                code: shown,
                code_bytes: (shown.len() < code.len()).then_some(code.len()),
            }),
            ..Record::of_gateway(Act::Execute)
        };
        self.log.record(&record).await;
    }
}

impl AuditLog {
    /// Records that somebody viewed the page of a share.
    pub(crate) async fn view(&self, share: &Share, address: Option<IpAddr>) {
        let (id, detail) = (share.kernel.id.to_string(), format!("share {}", share.id));
        self.record(&Record {
            address,
            id: Some(&id),
            detail: Some(&detail),
            ..Record::of_gateway(Act::View)
        })
        .await;
    }

    /// Records an act of the gateway itself.
    pub(crate) async fn gateway_act(&self, act: Act, detail: &str) {
        let detail = Some(detail);
        self.record(&Record {
            detail,
            ..Record::of_gateway(act)
        })
        .await;
    }

    /// Records the end of a kernel that no request caused.
    pub(crate) async fn kernel_event(&self, event: &KernelEvent) {
        let (act, detail) = match &event.kind {
            KernelEventKind::Culled => (Act::Culled, None),
            KernelEventKind::Dead(cause) => (Act::Died, Some(cause.to_string())),
            _ => return,
        };
        let id = event.id.to_string();
        let (id, detail) = (Some(id.as_str()), detail.as_deref());
        self.record(&Record {
            id,
            detail,
            ..Record::of_gateway(act)
        })
        .await;
    }

    /// Opens the file, or creates it, and starts the thread that writes it.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be opened, or no thread can be started.
    pub fn open(options: AuditOptions) -> io::Result<Self> {
        let (queue, items) = mpsc::channel(QUEUE);
        let failures = Arc::default();
        let has_code = options.code;
        let writer = Writer {
            file: open(&options.path)?,
            options,
            failures: Arc::clone(&failures),
            last_error: None,
            may_be_torn: true,
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(items))?;
        Ok(Self {
            has_code,
            queue,
            failures,
        })
    }

    async fn record(&self, record: &Record<'_>) {
        self.append(record.line()).await;
    }

    /// Appends a line. Waits if many lines wait for the disk.
    pub(crate) async fn append(&self, line: Vec<u8>) {
        // The thread ends only after all senders.
        let _ = self.queue.send(Item::Line(line)).await;
    }

    /// Waits until all lines so far are written.
    pub async fn flush(&self) {
        let (written, is_written) = oneshot::channel();
        if self.queue.send(Item::Flush(written)).await.is_ok() {
            let _ = is_written.await;
        }
    }

    /// How many lines could not be written.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).open(path)
}

struct Writer {
    options: AuditOptions,
    file: File,
    failures: Arc<AtomicU64>,
    last_error: Option<String>,
    /// Whether the last line may be incomplete, because writing it failed or the gateway was killed.
    may_be_torn: bool,
}

impl Writer {
    fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.blocking_recv() {
            match item {
                Item::Line(line) => self.write(&line),
                Item::Flush(written) => {
                    // The requester may be gone.
                    let _ = written.send(());
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) {
        match self.try_write(line) {
            Ok(()) => self.last_error = None,
            Err(error) => {
                self.may_be_torn = true;
                self.failures.fetch_add(1, Ordering::Relaxed);
                let error = error.to_string();
                if self.last_error.as_ref() != Some(&error) {
                    error!(path = %self.options.path.display(), error, "the audit log cannot be written; acts are missing in it");
                }
                self.last_error = Some(error);
            }
        }
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if size > 0 && size.saturating_add(line.len() as u64) > self.options.max_bytes {
            self.rotate()?;
        } else if self.may_be_torn && size > 0 {
            let mut last = [0];
            self.file.read_exact_at(&mut last, size - 1)?;
            if last != *b"\n" {
                self.file.write_all(b"\n")?;
            }
        }
        self.file.write_all(line)?;
        self.may_be_torn = false;
        Ok(())
    }

    /// Renames the files: the current one to `.1`, that one to `.2`, and so on. The oldest is replaced.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.options.path;
        for number in (0..self.options.files).rev() {
            let from = if number == 0 {
                path.clone()
            } else {
                numbered(path, number)
            };
            match std::fs::rename(from, numbered(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.options.files == 0 {
            std::fs::remove_file(path)?;
        }
        self.file = open(path)?;
        Ok(())
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::Value;

    use super::*;
    use crate::authorization::{Action, ROUTES, Use};

    #[test]
    fn each_route_that_does_something_is_an_act() {
        for (method, route, action) in ROUTES {
            let is_lookup = matches!(
                action,
                Action::Ask | Action::Measure | Action::Kernel(Use::See) | Action::Session(Use::See)
            );
            assert_eq!(act_of(method, route).is_none(), is_lookup, "{method} {route}");
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn files_are_appended_to_and_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let options = AuditOptions::new(&path).with_max_bytes(400).with_files(2);
        for part in 0..2 {
            let log = AuditLog::open(options.clone()).unwrap();
            for number in 0..10 {
                let detail = format!("{part} {number}");
                let detail = Some(detail.as_str());
                log.record(&Record {
                    detail,
                    ..Record::of_gateway(Act::Settings)
                })
                .await;
            }
            log.flush().await;
            assert_eq!(log.failures(), 0);
        }
        let mut details = Vec::new();
        for name in ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"] {
            let path = folder.path().join(name);
            assert!(path.metadata().unwrap().len() <= 400);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            details.extend(
                lines(&path)
                    .into_iter()
                    .map(|line| line["detail"].as_str().unwrap().to_owned()),
            );
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_eq!(details.last().unwrap(), "1 9");
        let newest: Vec<String> = (0..10).map(|number| format!("1 {number}")).collect();
        assert!(details.ends_with(&newest), "{details:?}");
    }

    #[test]
    fn a_line_after_an_incomplete_one_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, r#"{"act":"st"#).unwrap();
        let mut writer = Writer {
            file: open(&path).unwrap(),
            options: AuditOptions::new(&path),
            failures: Arc::default(),
            last_error: None,
            may_be_torn: true,
        };
        let line = Record::of_gateway(Act::Settings).line();
        writer.write(&line);
        writer.write(&line);
        // A file that cannot be written, and then a part of a line as a full disk leaves it.
        let good = std::mem::replace(&mut writer.file, File::open(&path).unwrap());
        writer.write(&line);
        assert_eq!(writer.failures.load(Ordering::Relaxed), 1);
        writer.file = good;
        writer.file.write_all(&line[..line.len() / 2]).unwrap();
        writer.write(&line);
        let text = std::fs::read_to_string(&path).unwrap();
        let complete: Vec<bool> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).is_ok())
            .collect();
        assert_eq!(complete, [false, true, true, false, true], "{text}");
        assert!(text.ends_with('\n') && !text.contains("\n\n"), "{text}");
    }

    #[tokio::test]
    async fn a_full_disk_is_counted_and_does_not_stop_the_gateway() {
        let log = AuditLog::open(AuditOptions::new("/dev/full")).unwrap();
        for _ in 0..3 {
            log.record(&Record::of_gateway(Act::Settings)).await;
        }
        log.flush().await;
        assert_eq!(log.failures(), 3);
    }
}
