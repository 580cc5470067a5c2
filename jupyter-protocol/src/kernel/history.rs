use std::collections::VecDeque;

use crate::connection_file::find::glob_matches;
use crate::content::{HistoryAccess, HistoryEntry, HistoryInput, HistoryReply, HistoryRequest};

/// Maximum number of entries. Beyond it, the oldest entry is dropped.
const MAX_ENTRIES: usize = 10_000;

/// Number of the only session: the history is not stored on disk.
const SESSION: i64 = 1;

/// Execution history of this session.
#[derive(Default)]
pub(super) struct History {
    entries: VecDeque<Entry>,
}

struct Entry {
    line: i64,
    input: String,
    output: Option<String>,
}

impl History {
    pub(super) fn push(&mut self, line: u64, input: String, output: Option<String>) {
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            line: i64::try_from(line).unwrap_or(i64::MAX),
            input,
            output,
        });
    }

    /// Answers a history request.
    ///
    /// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#history>
    pub(super) fn answer(&self, request: &HistoryRequest) -> HistoryReply {
        let mut found: Vec<&Entry> = match &request.hist_access_type {
            HistoryAccess::Tail => self.entries.iter().collect(),
            HistoryAccess::Range => {
                // Session 0 means the current one.
                let is_this_session = matches!(request.session, None | Some(0 | SESSION));
                let start = request.start.unwrap_or(1);
                let stop = request.stop.unwrap_or(i64::MAX);
                let within = |entry: &&Entry| is_this_session && (start..stop).contains(&entry.line);
                self.entries.iter().filter(within).collect()
            }
            HistoryAccess::Search => {
                let pattern = request.pattern.as_deref().unwrap_or("*");
                self.entries
                    .iter()
                    .filter(|entry| glob_matches(pattern, &entry.input))
                    .collect()
            }
            HistoryAccess::Other(_) => Vec::new(),
        };
        if request.unique == Some(true) {
            let mut seen = std::collections::HashSet::new();
            // Keeps the latest of equal inputs.
            found.reverse();
            found.retain(|entry| seen.insert(&entry.input));
            found.reverse();
        }
        if request.hist_access_type != HistoryAccess::Range
            && let Some(n) = request.n
        {
            let n = usize::try_from(n).unwrap_or(0);
            found.drain(..found.len().saturating_sub(n));
        }
        let entry = |entry: &Entry| HistoryEntry {
            session: SESSION,
            line: entry.line,
            input: if request.output {
                HistoryInput::WithOutput(entry.input.clone(), entry.output.clone())
            } else {
                HistoryInput::Input(entry.input.clone())
            },
        };
        HistoryReply {
            history: found.into_iter().map(entry).collect(),
            ..HistoryReply::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(history: &History, request: &HistoryRequest) -> Vec<i64> {
        history.answer(request).history.iter().map(|entry| entry.line).collect()
    }

    #[test]
    fn history_is_selected_by_tail_range_or_search() {
        let mut history = History::default();
        for (line, input) in (1..).zip(["a = 1", "b", "a = 2", "b"]) {
            history.push(line, input.to_owned(), (line == 4).then(|| "out".to_owned()));
        }
        assert_eq!(lines(&history, &HistoryRequest::tail(2)), [3, 4]);
        assert_eq!(lines(&history, &HistoryRequest::tail(-1)), [0_i64; 0]);
        let mut range = HistoryRequest {
            hist_access_type: HistoryAccess::Range,
            n: None,
            start: Some(2),
            stop: Some(4),
            ..HistoryRequest::tail(0)
        };
        assert_eq!(lines(&history, &range), [2, 3]);
        range.session = Some(7);
        assert!(lines(&history, &range).is_empty());
        let mut search = HistoryRequest {
            hist_access_type: HistoryAccess::Search,
            pattern: Some("a*".to_owned()),
            n: None,
            ..HistoryRequest::tail(0)
        };
        assert_eq!(lines(&history, &search), [1, 3]);
        search.pattern = None;
        search.unique = Some(true);
        assert_eq!(lines(&history, &search), [1, 3, 4]);
        search.output = true;
        let found = history.answer(&search).history;
        assert_eq!(
            found[2].input,
            HistoryInput::WithOutput("b".to_owned(), Some("out".to_owned()))
        );
    }
}
