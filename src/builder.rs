use kernel_manager::ManagerBuilder;

/// Methods of [`ManagerBuilder`] for the providers of this crate's features.
pub trait ManagerBuilderExt: Sized {
    /// Adds a provider of kernels as processes of this machine, which keeps its state in this folder. The folder is
    /// created if it does not exist, and only one process at a time can use it.
    #[cfg(feature = "local")]
    fn local(self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.local_with(crate::local::LocalOptions::new(folder))
    }

    /// Adds a provider of kernels as processes of this machine, with these options.
    #[cfg(feature = "local")]
    fn local_with(self, options: crate::local::LocalOptions) -> Self;

    /// Adds a provider of kernels as pods of a cluster, with these options.
    #[cfg(feature = "k8s")]
    fn k8s(self, options: crate::k8s::K8sOptions) -> Self;
}

impl ManagerBuilderExt for ManagerBuilder {
    #[cfg(feature = "local")]
    fn local_with(self, options: crate::local::LocalOptions) -> Self {
        self.provider_opened_by(crate::local::LocalProvider::open(options))
    }

    #[cfg(feature = "k8s")]
    fn k8s(self, options: crate::k8s::K8sOptions) -> Self {
        self.provider_opened_by(crate::k8s::K8sProvider::open(options))
    }
}
