use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, LanguageInfo, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait};

/// A kernel that prints the code that it is to execute.
pub(super) struct Echo;

#[async_trait]
impl Kernel for Echo {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: "fake".to_owned(),
            language_info: LanguageInfo {
                name: "echo".to_owned(),
                file_extension: ".txt".to_owned(),
                ..LanguageInfo::default()
            },
            ..KernelInfoReply::default()
        }
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout(&request.code).await;
        Ok(ExecuteReply::default())
    }
}
