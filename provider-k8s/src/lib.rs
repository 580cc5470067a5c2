#![doc = include_str!("../README.md")]
//! [`K8sProvider`] is a [`KernelProvider`](kernel_provider::KernelProvider). Each kernel is a bare pod without a
//! controller, because a kernel's state cannot be recreated. The kernel's key and the launch's environment variables
//! are in an immutable Secret that is owned by the pod and deleted with it. The provider stores nothing itself: the
//! cluster is the only record of which kernels run.
//!
//! # Kernelspecs
//!
//! `metadata.kernelmux.kubernetes` in a `kernel.json` describes the kernel's pods. Only `image` is required. Kubernetes
//! objects are written as in manifests:
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
//! The other keys are `image_pull_policy`, `gpu_resource` (default `nvidia.com/gpu`), `working_dir`, `run_as_user`
//! (default 1000), `run_as_group` (default 100), `writable_connection_file`, `restart_in_place` and `warm_pool`. The
//! template's container named `kernel` becomes the kernel's container. Enterprise Gateway's kernelspecs for Python and
//! R, with `metadata.process_proxy` or `metadata.kernel_provisioner`, work unchanged. The provider does not use their
//! launcher: it starts the kernel in the image directly.
//!
//! Any image that contains the kernel works: the connection file is mounted, and the kernel listens on fixed ports.
//! ipykernel before 6.29 writes to the connection file, so kernels started by a Python interpreter get a writable copy
//! of it, which needs `sh` and `cp` in the image. `writable_connection_file` turns the copy on or off for any kernel.
//!
//! Restarting a kernel that a Python interpreter started keeps its pod, and with it the node, the volumes and
//! everything installed into the container. `restart_in_place` turns this on or off for any kernel. A restart in place
//! needs `sh`, `cat`, `mkfifo`, `mv` and `rm` in the image, and a kernel that installs its own handler for SIGINT,
//! because the shell that starts the kernel makes it ignore this signal. If the pod is gone, or the kernelspec has
//! changed since the pod was created, a restart creates a new pod.
//!
//! # Warm pools
//!
//! `"warm_pool": {"size": 3, "max_age": 3600, "without": ["KERNEL_USERNAME"]}` keeps three pods with idle kernels
//! ready. A launch claims one of them, and the provider creates a replacement. A pod that stays unclaimed for `max_age`
//! seconds (default 3600) is replaced. Each pod has its own key.
//!
//! The image, resources, volumes, user, service account, working directory and variables of a running pod cannot be
//! changed. A launch that sets one of these gets a separate pod, and its progress and the log give the reason
//! ([`LaunchStage::Cold`](kernel_provider::LaunchStage::Cold)). The exceptions are the variables listed in `without`,
//! and `KERNEL_GATEWAY`, `KERNEL_ID` and `KERNEL_LAUNCH_TIMEOUT`, which only describe the launch. These variables are
//! dropped, and a warm pod is still used. With `KERNEL_WORKING_DIR` in `without`, the launch's working directory is
//! dropped too. Kernels from a pool have no `KERNELMUX_KERNEL_ID` in their environment.
//!
//! Providers with the same name in the same namespace share the pools, and no pod is handed out twice. When a provider
//! is dropped, its warm pods remain, and the next provider adopts them.
//!
//! # Agents
//!
//! With [`K8sOptions::with_agent_image`], process 1 of a kernel's container is `kernelmux-agent`: it starts the kernel,
//! records its messages, and outlives this program, so that no message is lost. An init container of that image copies
//! `kernelmux-agent` into the pod. [`KernelHandle::agent`](kernel_provider::KernelHandle::agent) is the link to the
//! agent, over TLS to port 9300 of the pod, or through one port-forward. The kernel's sockets are inside the pod, so
//! [`connection`](kernel_provider::KernelHandle::connection) is of no use outside. Restarts and interrupts need neither
//! a shell in the image nor `pods/exec`, and any kernel is restarted in place unless `restart_in_place` is `false`.
//!
//! Only one program at a time can be connected to an agent. A provider that attaches waits until the previous program
//! disconnects.
//!
//! # kube and k8s-openapi
//!
//! This crate's API contains types of both crates, so it re-exports them as [`kube`] and [`k8s_openapi`]; with these,
//! the versions always match. Your program selects their features, in particular the version of Kubernetes.
//!
//! # Rights
//!
//! In its namespace the provider needs to
//!
//! - `get`, `list`, `watch`, `create` and `delete` pods, and `patch` them for warm pools;
//! - `get` and `create` secrets;
//! - `list` and `watch` events;
//! - `get` pods/log;
//! - `create` and `get` pods/portforward, when it runs outside the cluster;
//! - `create` and `get` pods/exec, for kernelspecs whose `interrupt_mode` is `signal`, and for restarts in place.
//!   Without this right, a restart creates a new pod. Kernels with agents do not need it.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod agent_route;
mod api_error;
mod client;
mod cluster;
mod in_place_restart;
mod kernel;
mod manifest;
mod names;
mod options;
mod orphans;
mod phase;
mod plan;
mod pod_cache;
mod policy;
mod pool;
mod provider;
mod registry;
mod rights;
mod route;
mod settings;
mod specs;
mod start;
mod user_overrides;

use kernel_provider::lock;

pub use client::client;
#[doc(no_inline)]
pub use k8s_openapi;
#[doc(no_inline)]
pub use kube;
pub use options::{K8sOptions, Reach};
pub use policy::Policy;
pub use provider::K8sProvider;
pub use rights::{MissingRight, cluster_time, missing_rights};
pub use user_overrides::Input;
