//! Jupyter kernels as pods of a Kubernetes cluster.
//!
//! [`K8sProvider`] is a [`KernelProvider`](kernel_provider::provider::KernelProvider). Each kernel is a bare pod: a
//! kernel's state cannot be made again, so there is no controller that would try. Its key and its environment are in an
//! immutable Secret that belongs to the pod and goes with it. What runs is what the cluster says; nothing else is kept.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use kernel_provider::KernelId;
//! use kernel_provider::provider::{KernelProvider as _, LaunchRequest, Progress};
//! use provider_k8s::{K8sConfig, K8sProvider};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = K8sProvider::open(K8sConfig::new("notebooks")).await?;
//! let request = LaunchRequest::new(KernelId::random(), "python3");
//! let kernel = provider.launch(request, Progress::new(|stage| println!("{stage:?}"))).await?;
//! println!("its sockets are at {:?}", kernel.connection().await?.ip);
//! let exit = kernel.shutdown(Duration::from_secs(5)).await?;
//! println!("{}", exit.cause);
//! # Ok(())
//! # }
//! ```
//!
//! # Kernelspecs
//!
//! A `kernel.json` says in `metadata.kernelmux.kubernetes` what its pods are like. `image` is needed, the rest is not;
//! objects of Kubernetes are written as in its manifests:
//!
//! ```json
//! {
//!   "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
//!   "display_name": "Python 3",
//!   "language": "python",
//!   "metadata": {"kernelmux": {"kubernetes": {
//!     "image": "example/python-kernel:1",
//!     "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
//!     "gpus": 1,
//!     "volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": "home"}}],
//!     "volume_mounts": [{"name": "home", "mountPath": "/home/jovyan"}],
//!     "node_selector": {"pool": "notebooks"},
//!     "tolerations": [{"key": "gpu", "operator": "Exists"}],
//!     "service_account": "kernel",
//!     "image_pull_secrets": ["registry"],
//!     "pod_template": {"metadata": {"labels": {"team": "a"}}, "spec": {"priorityClassName": "low", "containers": []}}
//!   }}}
//! }
//! ```
//!
//! There are also `image_pull_policy`, `gpu_resource` (`nvidia.com/gpu`), `working_dir`, `run_as_user` (1000),
//! `run_as_group` (100) and `warm_pool`. A container of the name `kernel` in the template is the kernel's. Enterprise Gateway's
//! kernelspecs, with `metadata.process_proxy` or `metadata.kernel_provisioner`, are taken as they are; the kernel in the
//! image is then started without their launcher.
//!
//! Any image that has the kernel works: the connection file is mounted, and the kernel listens on fixed ports. Kernels that
//! Python runs get a copy of the file that they can write, since ipykernel before 6.29 writes it; that takes `sh` and `cp`
//! in the image. `writable_connection_file` says so for others, or that it is not so.
//!
//! A restart of a kernel that Python runs keeps its pod, and with it the node, the volumes and what was installed into the
//! container; `restart_in_place` says so for others, or that it is not so. That takes `sh` and `mkfifo` in the image, and
//! a kernel that sets its own handler for SIGINT. Where the pod is gone, or the kernelspec has changed since it was made,
//! a restart makes a new one.
//!
//! # Warm pools
//!
//! `"warm_pool": {"size": 3, "max_age": 3600, "without": ["KERNEL_USERNAME"]}` keeps three pods ready, with a kernel that
//! waits in each. A launch makes one of them its own, and another is made in its place. One that nobody has claimed after
//! `max_age` seconds (an hour, where it is not said) is replaced. Each has a key of its own.
//!
//! A pod that runs takes no other image, resources, volumes, user, service account, working directory or variables any
//! more. A launch that sets one of these gets a pod of its own; its progress and the log say so
//! ([`LaunchStage::Cold`](kernel_provider::provider::LaunchStage::Cold)). The variables named in `without` are given up
//! instead, as are `KERNEL_GATEWAY`, `KERNEL_ID` and `KERNEL_LAUNCH_TIMEOUT`, which say something of the launch only; with
//! `KERNEL_WORKING_DIR` among them the launch's directory is given up too. Kernels from a pool have no
//! `KERNELMUX_KERNEL_ID` in their environment.
//!
//! Providers of the same name share the pools; no pod is handed out twice. A provider that is dropped leaves the pods to
//! the next.
//!
//! # Rights
//!
//! In its namespace the provider needs to `get`, `list`, `watch`, `create` and `delete` pods and, for warm pools, to `patch` them, to `get` and `create`
//! secrets, to `list` and `watch` events, to `get` pods/log; to `create` and `get` pods/portforward where it is outside of
//! the cluster, and pods/exec where a kernelspec's `interrupt_mode` is `signal` and for restarts in place: without it a
//! restart makes a new pod.

mod api_error;
mod client;
mod cluster;
mod config;
mod in_place_restart;
mod kernel;
mod manifest;
mod names;
mod orphans;
mod phase;
mod plan;
mod pod_cache;
mod policy;
mod pool;
mod provider;
mod registry;
mod route;
mod settings;
mod specs;
mod start;
mod user_overrides;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::{AbortHandle, JoinHandle};

pub use client::client;
pub use config::{K8sConfig, Reach};
pub use policy::Policy;
pub use provider::K8sProvider;
pub use user_overrides::Input;

/// Nothing here panics while it holds a lock, so what a lock guards is whole even if it says otherwise.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The owner of a task: ends it when dropped.
struct AbortOnDrop(AbortHandle);

impl AbortOnDrop {
    fn new<T>(task: &JoinHandle<T>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
