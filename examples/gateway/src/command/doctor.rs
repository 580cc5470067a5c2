//! `kernelmux-gateway doctor`: checks what the gateway needs, and says what to do.

use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::paths::PathEnv;
use kernel_log::{DiskStore, LogStore};
use kernel_provider::{ProviderError, Specs};
use kernelmux_gateway::{GatewayOptions, Oidc};
use provider_k8s::{kube, missing_rights};
use tokio::time::timeout;

use super::data_dir::{self, DataDir};
use super::settings::Settings;

/// Less free space than this is reported, in bytes.
const LITTLE_SPACE: u64 = 1 << 30;
/// A certificate that expires sooner is reported.
const EXPIRES_SOON: TimeDelta = TimeDelta::days(14);
/// A larger difference between two clocks is reported.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(5);
/// How long the cluster may take to answer.
const CLUSTER_DEADLINE: Duration = Duration::from_secs(30);

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The gateway works, but not as well as it could.
    Warning,
    /// The gateway, or a part of it, does not work.
    Problem,
}

/// The report so far.
#[derive(Default)]
pub(super) struct Report {
    pub(super) text: String,
    pub(super) has_problem: bool,
}

impl Report {
    fn add(&mut self, verdict: Verdict, subject: &str, what: &str) {
        let verdict_name = match verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        };
        self.has_problem |= verdict == Verdict::Problem;
        // A text always takes more text.
        let _ = writeln!(self.text, "{verdict_name:8} {subject}: {what}");
    }
}

/// Runs all checks.
pub(super) fn run(settings: &Settings) -> Report {
    let mut report = Report::default();
    for warning in &settings.warnings {
        report.add(Verdict::Warning, "settings", warning);
    }
    check_data_dir(settings, &mut report);
    check_access(settings, &mut report);
    match &settings.flags.kubernetes.kubernetes_namespace {
        Some(namespace) => check_cluster(namespace, &mut report),
        None => check_kernelspecs(&mut report),
    }
    report
}

fn check_data_dir(settings: &Settings, report: &mut Report) {
    let path = match settings.flags.data_dir.clone().map_or_else(data_dir::default_path, Ok) {
        Ok(path) => path,
        Err(error) => return report.add(Verdict::Problem, "data directory", &error),
    };
    if !path.exists() {
        let what = format!("{} does not exist yet; the gateway creates it", path.display());
        return report.add(Verdict::Good, "data directory", &what);
    }
    check_space(&path, report);
    check_clock(&path, report);
    if settings.flags.log_nats.is_some() {
        return;
    }
    match DataDir::take(path) {
        Ok(data_dir) => check_logs(&data_dir, report),
        Err(error) if error.starts_with("another gateway") => {
            report.add(Verdict::Good, "logs", "not checked, because a gateway is using them");
        }
        Err(error) => report.add(Verdict::Problem, "data directory", &error),
    }
}

fn check_space(path: &Path, report: &mut Report) {
    match rustix::fs::statvfs(path) {
        Ok(system) => {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            let what = format!("{} has {} MiB of free space", path.display(), free >> 20);
            if free < LITTLE_SPACE {
                let advice = format!("{what}; limit the logs with --log-quota, or make room");
                report.add(Verdict::Warning, "data directory", &advice);
            } else {
                report.add(Verdict::Good, "data directory", &what);
            }
        }
        Err(error) => report.add(
            Verdict::Problem,
            "data directory",
            &format!("{}: {error}", path.display()),
        ),
    }
}

/// Compares the clock with that of the file system, which may be another machine's.
fn check_clock(path: &Path, report: &mut Report) {
    let probe = path.join(format!("doctor-{}.tmp", std::process::id()));
    let modified = File::create_new(&probe).and_then(|file| file.metadata()?.modified());
    // Nothing else removes it.
    let _ = std::fs::remove_file(&probe);
    match modified {
        Ok(modified) => {
            let now = SystemTime::now();
            let difference = now.duration_since(modified).or_else(|_| modified.duration_since(now));
            let difference = difference.unwrap_or_default();
            if difference > CLOCK_DIFFERENCE {
                let what = format!(
                    "the clock differs from that of the data directory by {} s; synchronize both, because tokens and \
                     logs expire by the clock",
                    difference.as_secs()
                );
                report.add(Verdict::Warning, "clock", &what);
            } else {
                report.add(Verdict::Good, "clock", "it agrees with that of the data directory");
            }
        }
        Err(error) => {
            let what = format!("no file can be created in {}: {error}", path.display());
            report.add(Verdict::Problem, "data directory", &what);
        }
    }
}

/// Compares the clock with that of another machine, in HTTP's resolution of a second.
fn compare_clock(whose: &str, theirs: DateTime<Utc>, report: &mut Report) {
    let difference = (Utc::now() - theirs).abs();
    if difference.to_std().unwrap_or_default() > CLOCK_DIFFERENCE {
        let what = format!(
            "the clock differs from that of {whose} by {} s; synchronize both, because tokens expire by the clock",
            difference.num_seconds()
        );
        report.add(Verdict::Warning, "clock", &what);
    } else {
        report.add(Verdict::Good, "clock", &format!("it agrees with that of {whose}"));
    }
}

fn check_issuer(oidc: &Oidc, report: &mut Report) {
    match blocking(oidc.check()) {
        Ok(Ok(theirs)) => {
            report.add(Verdict::Good, "issuer", "its keys were fetched");
            if let Some(theirs) = theirs {
                compare_clock("the issuer", theirs, report);
            }
        }
        Ok(Err(error)) => report.add(Verdict::Problem, "issuer", &error.to_string()),
        Err(error) => report.add(Verdict::Problem, "issuer", &error.to_string()),
    }
}

/// Runs a check to its end, on a runtime of its own.
fn blocking<T>(check: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(check))
}

fn check_logs(data_dir: &DataDir, report: &mut Report) {
    let listed = data_dir.folder("logs").and_then(|folder| {
        let store = DiskStore::open(&folder).map_err(|error| error.to_string())?;
        store.list().map_err(|error| error.to_string())
    });
    match listed {
        Ok(logs) => {
            let bytes: u64 = logs.iter().map(|log| log.bytes).sum();
            report.add(
                Verdict::Good,
                "logs",
                &format!("{} logs with {} MiB", logs.len(), bytes >> 20),
            );
        }
        Err(error) => report.add(Verdict::Problem, "logs", &error),
    }
}

fn check_access(settings: &Settings, report: &mut Report) {
    let flags = &settings.flags;
    let mut options = match flags.access() {
        Ok(access) => GatewayOptions::new(access),
        Err(error) => return report.add(Verdict::Problem, "access", &error),
    };
    match flags.sign_in.apply(&mut options) {
        Ok(()) => report.add(Verdict::Good, "access", "the settings for users are valid"),
        Err(error) => report.add(Verdict::Problem, "access", &error.to_string()),
    }
    if let Some(path) = flags.sign_in.users_file.as_deref().filter(|path| !path.exists()) {
        let what = format!(
            "there are no users yet, because {} does not exist; add one with `kernelmux-gateway user add NAME`",
            path.display()
        );
        report.add(Verdict::Warning, "users", &what);
    }
    if let Some(oidc) = &options.oidc {
        check_issuer(oidc, report);
    }
    match flags.tls.apply(&mut options) {
        Ok(()) => {}
        Err(error) => return report.add(Verdict::Problem, "certificate", &error),
    }
    match options.tls.as_ref().map(kernelmux_gateway::Tls::not_after) {
        Some(Some(end)) => {
            let (verdict, what) = expiry(end, Utc::now());
            report.add(verdict, "certificate", &what);
        }
        Some(None) => report.add(Verdict::Problem, "certificate", "it cannot be decoded; get another one"),
        None if !flags.ip.is_loopback() => {
            let what = format!("{} serves plain HTTP; use --tls-cert, or a proxy with TLS", flags.ip);
            report.add(Verdict::Warning, "certificate", &what);
        }
        None => {}
    }
}

/// What to say of a certificate that expires then.
fn expiry(end: DateTime<Utc>, now: DateTime<Utc>) -> (Verdict, String) {
    let day = end.format("%Y-%m-%d");
    if end <= now {
        (Verdict::Problem, format!("it expired on {day}; renew it"))
    } else if end - now < EXPIRES_SOON {
        (
            Verdict::Warning,
            format!("it expires on {day}; renew it, no restart is needed"),
        )
    } else {
        (Verdict::Good, format!("it is valid until {day}"))
    }
}

fn check_kernelspecs(report: &mut Report) {
    let specs = Specs::find(&SearchPath::from_env(&PathEnv::from_process()));
    for reason in specs.broken.values() {
        report.add(Verdict::Problem, "kernelspec", reason);
    }
    if specs.by_name.is_empty() {
        let what = "there are none; install one, for example with `pip install ipykernel`, or set JUPYTER_PATH";
        report.add(Verdict::Problem, "kernelspecs", what);
    }
    for (name, installed) in &specs.by_name {
        let subject = format!("kernelspec {name}");
        match installed.spec.argv.first() {
            Some(program) if find_program(program).is_none() && !is_python(program) => {
                let what = format!("its program {program} does not exist; install it, or correct the kernel.json");
                report.add(Verdict::Problem, &subject, &what);
            }
            Some(program) => report.add(Verdict::Good, &subject, program),
            None => report.add(Verdict::Problem, &subject, "its kernel.json has an empty argv"),
        }
    }
}

/// Whether the provider chooses the interpreter.
fn is_python(program: &str) -> bool {
    program.starts_with("python") && !program.contains('/')
}

fn find_program(program: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(is_program);
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(is_program)
}

fn check_cluster(namespace: &str, report: &mut Report) {
    let asking = async {
        let config = kube::Config::infer().await.map_err(|error| error.to_string())?;
        let client = provider_k8s::client(config).map_err(|error| error.to_string())?;
        let failed = |error: ProviderError| error.to_string();
        let missing = missing_rights(client.clone(), namespace).await.map_err(failed)?;
        Ok::<_, String>((missing, provider_k8s::cluster_time(client).await.map_err(failed)?))
    };
    let answer = match blocking(async { timeout(CLUSTER_DEADLINE, asking).await }) {
        Ok(answer) => answer,
        Err(error) => return report.add(Verdict::Problem, "cluster", &error.to_string()),
    };
    if let Ok(Ok((_, Some(theirs)))) = &answer {
        compare_clock("the cluster", *theirs, report);
    }
    match answer {
        Ok(Ok((missing, _))) if missing.is_empty() => {
            report.add(
                Verdict::Good,
                "cluster",
                &format!("the namespace {namespace} grants all rights"),
            );
        }
        Ok(Ok((missing, _))) => {
            for right in missing {
                let what = format!(
                    "the right to {} {} in the namespace {namespace} is missing; grant it with a Role, such as that of \
                     deploy/kubernetes/rights.yaml",
                    right.verb, right.resource
                );
                report.add(Verdict::Problem, "cluster", &what);
            }
        }
        Ok(Err(error)) => {
            let what = format!("{error}; check KUBECONFIG, or the pod's service account");
            report.add(Verdict::Problem, "cluster", &what);
        }
        Err(_) => report.add(
            Verdict::Problem,
            "cluster",
            "it did not answer; check KUBECONFIG and the network",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_expire_soon_are_reported() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        for (days, verdict, word) in [
            (-1, Verdict::Problem, "expired"),
            (3, Verdict::Warning, "renew"),
            (60, Verdict::Good, "valid until 2024-12-03"),
        ] {
            let (found, what) = expiry(now + TimeDelta::days(days), now);
            assert_eq!(found, verdict);
            assert!(what.contains(word), "{what}");
        }
    }
}
