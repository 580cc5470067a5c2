//! Tracks the kernel's open questions (`input_request`), so that only the first answer to each question is sent.

use std::collections::VecDeque;

use bytes::Bytes;
use jupyter_protocol::content::Content;
use jupyter_protocol::message::Message;
use jupyter_protocol::{Header, WireMessage};
use kernel_log::Seq;
use serde_json::json;

use crate::fold::answers;

/// The most open questions. A kernel asks one at a time in each subshell. Beyond the limit, the oldest is forgotten.
const MAX_OPEN: usize = 64;
/// How many answered questions are remembered.
const MAX_ANSWERED: usize = 256;
/// The type of the message that notifies other sessions of an answered question.
const ANSWERED: &str = "kernelmux_answered";

/// A question.
#[derive(Clone)]
pub(super) struct Question {
    /// The entry of the `input_request`.
    pub(super) seq: Seq,
    /// The `input_request` with only its headers, so that it is small.
    message: WireMessage,
}

impl Question {
    fn new(seq: Seq, request: &WireMessage) -> Self {
        // Copied, because the parts share memory with the whole message.
        let [header, parent, ..] = request.parts().map(|part| Bytes::copy_from_slice(part));
        let empty = || Bytes::from_static(b"{}");
        let message = WireMessage::from_parts([header, parent, empty(), empty()], []);
        Self { seq, message }
    }

    fn msg_id(&self) -> String {
        let header = self.message.header_ref();
        header.map_or_else(|_| String::new(), |header| header.msg_id.into_owned())
    }

    /// The `msg_id` of the request whose code asks the question.
    pub(super) fn request_id(&self) -> String {
        let parent = self.message.parent_ref();
        parent.map_or_else(|_| String::new(), |parent| parent.msg_id.into_owned())
    }

    /// The message that notifies other sessions of the answer.
    pub(super) fn answered_message(&self, kernel_session: &str) -> WireMessage {
        let content = json!({"input_request": self.msg_id()}).to_string();
        let message = Message::new(Content::parse(ANSWERED, content.as_bytes()), kernel_session);
        match Header::parse_parent(self.message.parent_header()) {
            Ok(Some(parent)) => message.with_parent(parent),
            _ => message,
        }
        .to_wire()
    }
}

/// Whether this message notifies other sessions of an answered question.
pub(crate) fn is_answered_notice(message: &WireMessage) -> bool {
    super::msg_type::msg_type(message) == ANSWERED
}

/// The question that an `input_reply` answers.
pub(super) enum Answered {
    /// This question, which is closed now.
    Question(Question),
    /// A question that was answered before, or whose execution has ended.
    TooLate,
    /// No known question.
    Unknown,
}

/// The questions of one kernel.
#[derive(Default)]
pub(super) struct Questions {
    open: VecDeque<Question>,
    answered: VecDeque<Question>,
}

impl Questions {
    /// Adds a question that the kernel asked in entry `seq`.
    pub(super) fn add(&mut self, seq: Seq, request: &WireMessage) {
        self.open.push_back(Question::new(seq, request));
        if self.open.len() > MAX_OPEN {
            self.open.pop_front();
        }
    }

    /// Closes the questions of a request that has ended.
    pub(super) fn end(&mut self, msg_id: &str) {
        self.open.retain(|question| question.request_id() != msg_id);
    }

    /// Closes the question that this reply answers.
    pub(super) fn answer(&mut self, reply: &WireMessage) -> Answered {
        if let Some(place) = self.open.iter().position(|question| answers(reply, &question.message))
            && let Some(question) = self.open.remove(place)
        {
            self.answered.push_back(question.clone());
            if self.answered.len() > MAX_ANSWERED {
                self.answered.pop_front();
            }
            return Answered::Question(question);
        }
        // A reply without a parent can answer any question, even one that was answered before.
        if self.answered.iter().any(|question| answers(reply, &question.message)) {
            return Answered::TooLate;
        }
        Answered::Unknown
    }

    /// Reopens a question whose reply did not reach the kernel.
    pub(super) fn reopen(&mut self, question: &Question) {
        let msg_id = question.msg_id();
        self.answered.retain(|answered| answered.msg_id() != msg_id);
        self.open.push_front(question.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(msg_id: &str, parent: &str) -> WireMessage {
        let header = json!({"msg_id": msg_id, "msg_type": "x"}).to_string();
        let parent = json!({"msg_id": parent, "msg_type": "execute_request"}).to_string();
        WireMessage::from_parts([header, parent, "{}".to_owned(), "{}".to_owned()].map(Bytes::from), [])
    }

    fn answer(questions: &mut Questions, parent: &str) -> String {
        match questions.answer(&message("reply", parent)) {
            Answered::Question(question) => question.msg_id(),
            Answered::TooLate => "too late".to_owned(),
            Answered::Unknown => "unknown".to_owned(),
        }
    }

    #[test]
    fn each_question_is_answered_once_whatever_the_parent_of_the_reply() {
        let mut questions = Questions::default();
        for parent in ["", "cell", "question"] {
            // A new process has no earlier questions.
            assert_eq!(answer(&mut Questions::default(), parent), "unknown");
        }
        for (number, (first, second)) in [("", ""), ("q", "cell"), ("cell", "q"), ("", "q")]
            .into_iter()
            .enumerate()
        {
            let id = format!("q{number}");
            let parent = |parent: &str| if parent == "q" { id.clone() } else { parent.to_owned() };
            questions.add(Seq(1), &message(&id, "cell"));
            assert_eq!(answer(&mut questions, &parent(first)), id);
            assert_eq!(answer(&mut questions, &parent(second)), "too late");
        }
        assert_eq!(answer(&mut questions, "another cell"), "unknown");
    }

    #[test]
    fn a_question_ends_with_its_cell_and_is_open_again_if_its_answer_was_not_sent() {
        let mut questions = Questions::default();
        questions.add(Seq(1), &message("q", "cell"));
        let Answered::Question(question) = questions.answer(&message("reply", "q")) else {
            panic!("the question is not known");
        };
        questions.reopen(&question);
        assert_eq!(answer(&mut questions, "q"), "q");
        questions.add(Seq(2), &message("r", "cell"));
        questions.add(Seq(3), &message("s", "other"));
        questions.end("cell");
        assert_eq!(answer(&mut questions, "r"), "unknown");
        assert_eq!(answer(&mut questions, ""), "s");
        for number in 0..2 * MAX_ANSWERED {
            questions.add(Seq(4), &message(&number.to_string(), "cell"));
            questions.answer(&message("reply", "cell"));
        }
        assert_eq!(questions.answered.len(), MAX_ANSWERED);
    }
}
