//! The kernel's questions to clients, and the answers to them.

use jupyter_protocol::WireMessage;
use kernel_log::Seq;

use super::RequestIndex;
use crate::session::questions::{Answered, Question};

impl RequestIndex {
    /// The entries of the open `input_request`s of executions that this session requested or follows.
    pub(in crate::session) fn open_questions(&self, session: &str) -> Vec<Seq> {
        let executions = self.executions.values();
        let of_session = executions.filter(|execution| execution.concerns(session));
        of_session.filter_map(|execution| execution.open_input).collect()
    }

    /// Closes the question that an `input_reply` answers. The caller does not send an answer that is too late, because
    /// the kernel would take it for the answer to its next question.
    pub(in crate::session) fn answer(&mut self, reply: &WireMessage) -> Answered {
        let parent = reply.parent_ref().map(|parent| parent.msg_id.into_owned());
        let parent = parent.unwrap_or_default();
        let answered = match self.questions.answer(reply) {
            // The question is unknown to this process. The reply counts as too late if it has a parent and the parent
            // is not the request of an unfinished execution.
            Answered::Unknown if !parent.is_empty() && !self.is_running(&parent) => Answered::TooLate,
            answered => answered,
        };
        match &answered {
            Answered::Question(question) => self.set_open_input(&question.request_id(), None),
            Answered::Unknown => self.set_open_input(&parent, None),
            Answered::TooLate => {}
        }
        answered
    }

    /// Reopens a question whose answer was not sent.
    pub(in crate::session) fn reopen(&mut self, question: &Question) {
        self.questions.reopen(question);
        self.set_open_input(&question.request_id(), Some(question.seq));
    }

    fn set_open_input(&mut self, msg_id: &str, seq: Option<Seq>) {
        if let Some(execution) = self.executions.get_mut(msg_id)
            && execution.ended.is_none()
            && execution.open_input != seq
        {
            execution.open_input = seq;
            self.changed.insert(msg_id.into());
        }
    }

    fn is_running(&self, msg_id: &str) -> bool {
        let execution = self.executions.get(msg_id);
        execution.is_some_and(|execution| execution.ended.is_none())
    }
}
