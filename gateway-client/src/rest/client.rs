use std::fmt;
use std::time::Duration;

use http::Method;
use jupyter_protocol::KernelId;
use percent_encoding::utf8_percent_encode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::RestError;
use super::execution::{ExecutionModel, ExecutionOutputs, ExecutionPage, ExecutionQuery, NewExecution};
use super::http::Http;
use super::kernel::{KernelModel, Kernelspecs, NewKernel};
use super::options::GatewayClientOptions;
use crate::endpoint::ESCAPED;
#[cfg(feature = "client")]
use crate::resume::client::ResumeOptions;

/// A client of a gateway's REST API: see the [module](super). Clones share connections.
///
/// ```no_run
/// use gateway_client::GatewayClient;
/// use gateway_client::rest::{GatewayClientOptions, NewKernel};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = GatewayClient::new(GatewayClientOptions::new("http://127.0.0.1:8888").with_token("secret"))?;
/// let kernel = client.start_kernel(NewKernel::new("python3").with_env("KERNEL_USERNAME", "ada")).await?;
/// let execution = client.execute(kernel.id, "print(6 * 7)").await?;
/// // The code continues even if this program ends. Later:
/// let outputs = client.execution(kernel.id, &execution.msg_id).await?;
/// println!("{:?}: {}", outputs.execution.status, outputs.text());
/// client.shut_down_kernel(kernel.id).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct GatewayClient {
    options: GatewayClientOptions,
    http: Http,
}

impl GatewayClient {
    /// Creates a client. It connects on the first request.
    ///
    /// # Errors
    /// [`RestError::InvalidUrl`] or [`RestError::InvalidToken`] for invalid options; with the feature `tls` also
    /// `RestError::Tls` if the system has no trusted certificates.
    pub fn new(options: GatewayClientOptions) -> Result<Self, RestError> {
        Ok(Self {
            http: Http::new(&options)?,
            options,
        })
    }

    /// Lists the kernelspecs that can be started.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn list_kernelspecs(&self) -> Result<Kernelspecs, RestError> {
        self.get("/api/kernelspecs").await
    }

    /// Lists the gateway's kernels, oldest first.
    ///
    /// # Errors
    /// [`RestError`], with status 403 if the gateway does not allow listing kernels.
    pub async fn list_kernels(&self) -> Result<Vec<KernelModel>, RestError> {
        self.get("/api/kernels").await
    }

    /// Lists the kernels of the kernelspec with this name, oldest first.
    ///
    /// # Errors
    /// As [`list_kernels`](Self::list_kernels).
    pub async fn find_kernels(&self, name: &str) -> Result<Vec<KernelModel>, RestError> {
        let mut kernels = self.list_kernels().await?;
        kernels.retain(|kernel| kernel.name == name);
        Ok(kernels)
    }

    /// Returns the kernel with this id.
    ///
    /// # Errors
    /// [`RestError`], for which [`is_not_found`](RestError::is_not_found) is true if there is no such kernel.
    pub async fn kernel(&self, kernel: KernelId) -> Result<KernelModel, RestError> {
        self.get(&format!("/api/kernels/{kernel}")).await
    }

    /// Starts a kernel and waits until it answers. Takes the name of a kernelspec or a [`NewKernel`].
    ///
    /// # Errors
    /// [`RestError`], with status 400 if there is no such kernelspec, 403 if the user may not use it or there are too
    /// many kernels, 409 if the id is taken, 500 if the kernel cannot be started and 504 if it does not answer. After
    /// [`TimedOut`](RestError::TimedOut) and [`Connection`](RestError::Connection), the gateway may have started the
    /// kernel. If the request had an [id](NewKernel::with_id), the kernel can be found.
    pub async fn start_kernel(&self, kernel: impl Into<NewKernel>) -> Result<KernelModel, RestError> {
        self.post("/api/kernels", &kernel.into(), self.options.launch_timeout)
            .await
    }

    /// Restarts a kernel under the same id and waits until it answers.
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is no such kernel, 409 if its process or pod is gone, 500 if it cannot
    /// be started and 504 if it does not answer.
    pub async fn restart_kernel(&self, kernel: KernelId) -> Result<KernelModel, RestError> {
        let path = format!("/api/kernels/{kernel}/restart");
        let body = self.http.send(Method::POST, &path, None, self.options.launch_timeout);
        parse(&body.await?)
    }

    /// Interrupts the code that a kernel runs.
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is no such kernel and 409 if it is dead.
    pub async fn interrupt_kernel(&self, kernel: KernelId) -> Result<(), RestError> {
        let path = format!("/api/kernels/{kernel}/interrupt");
        self.http.send(Method::POST, &path, None, self.options.timeout).await?;
        Ok(())
    }

    /// Ends a kernel. Its log is kept.
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is no such kernel.
    pub async fn shut_down_kernel(&self, kernel: KernelId) -> Result<(), RestError> {
        let path = format!("/api/kernels/{kernel}");
        let limit = self.options.launch_timeout;
        self.http.send(Method::DELETE, &path, None, limit).await?;
        Ok(())
    }

    /// Returns a page of the executions in a kernel's log, newest first, even after the kernel has ended.
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is neither such a kernel nor its log.
    pub async fn list_executions(&self, kernel: KernelId, query: &ExecutionQuery) -> Result<ExecutionPage, RestError> {
        let query = query.to_query();
        self.get(&format!("/api/kernels/{kernel}/executions{query}")).await
    }

    /// Returns an execution with its outputs in notebook format, even after the kernel has ended.
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is no such execution and 503 if too many large outputs are being read.
    pub async fn execution(&self, kernel: KernelId, msg_id: &str) -> Result<ExecutionOutputs, RestError> {
        let msg_id = utf8_percent_encode(msg_id, ESCAPED);
        let path = format!("/api/kernels/{kernel}/executions/{msg_id}");
        let body = self.http.send(Method::GET, &path, None, self.options.timeout).await?;
        ExecutionOutputs::from_json(&body).map_err(RestError::InvalidJson)
    }

    /// Runs code without a connected client, and returns when the kernel has received it. Takes code or a
    /// [`NewExecution`].
    ///
    /// # Errors
    /// [`RestError`], with status 404 if there is no such kernel, 409 if it is dead or the `msg_id` belongs to other
    /// code, and 504 if the kernel does not receive the code in time. With [`NewExecution::with_msg_id`], the request
    /// can be repeated after any error, and the code runs once.
    pub async fn execute(
        &self,
        kernel: KernelId,
        execution: impl Into<NewExecution>,
    ) -> Result<ExecutionModel, RestError> {
        let path = format!("/api/kernels/{kernel}/executions");
        self.post(&path, &execution.into(), self.options.timeout).await
    }

    /// Returns the options of a [`ResumeClient`](crate::resume::client::ResumeClient) that follows a kernel of this
    /// gateway, with this client's address, token, `dial` and TLS configuration.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn resume(&self, kernel: KernelId) -> ResumeOptions {
        let mut options = ResumeOptions::new(self.options.url.clone(), kernel);
        options.token.clone_from(&self.options.token);
        options.dial.clone_from(&self.options.dial);
        #[cfg(feature = "tls")]
        options.tls.clone_from(&self.options.tls);
        options
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RestError> {
        let body = self.http.send(Method::GET, path, None, self.options.timeout);
        parse(&body.await?)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, RestError> {
        let body = serde_json::to_vec(body).map_err(RestError::InvalidJson)?;
        let body = self.http.send(Method::POST, path, Some(body), limit);
        parse(&body.await?)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, RestError> {
    serde_json::from_slice(body).map_err(RestError::InvalidJson)
}

impl fmt::Debug for GatewayClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayClient")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
