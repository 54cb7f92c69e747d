//! What do the processes inside tell the caller?
//!
//! Each message goes over one pipe in one write, shorter than what a pipe takes at once, so that messages of several
//! processes do not mix.

use super::{OPERATION, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::child::Ended;
use std::fs::File;
use std::io::Write;

/// As much as a message has of text.
const MAX_TEXT: usize = 3000;

/// The kinds by number, for the way through the pipe.
const KINDS: [ErrorKind; 13] = [
    ErrorKind::InvalidArgument,
    ErrorKind::NotFound,
    ErrorKind::AlreadyExists,
    ErrorKind::PermissionDenied,
    ErrorKind::NoSpace,
    ErrorKind::FailedPrecondition,
    ErrorKind::Busy,
    ErrorKind::Unsupported,
    ErrorKind::Unavailable,
    ErrorKind::Cancelled,
    ErrorKind::Aborted,
    ErrorKind::Corrupt,
    ErrorKind::Io,
];

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Something of ours failed.
    Failed(ErrorKind, String),
    /// The command ended.
    Ended(Ended),
    /// The command could not be started.
    NotFound(String),
    /// The command could not be started, though it is there.
    NotExecutable(String),
}

impl Message {
    /// The news of a failure.
    pub fn of(error: &Error) -> Self {
        Message::Failed(error.kind(), error.to_string())
    }

    /// Tells it; nobody hears it if the caller is gone.
    pub fn send(&self, pipe: &mut File) {
        let _ = pipe.write_all(&self.bytes());
    }

    fn bytes(&self) -> Vec<u8> {
        let (tag, number, text) = match self {
            Message::Failed(kind, text) => {
                (b'f', KINDS.iter().position(|k| k == kind).unwrap_or(KINDS.len()) as u8, text.as_str())
            }
            Message::Ended(Ended::Exit(code)) => (b'e', *code, ""),
            Message::Ended(Ended::Signal(number)) => (b's', *number, ""),
            Message::NotFound(text) => (b'n', 0, text.as_str()),
            Message::NotExecutable(text) => (b'x', 0, text.as_str()),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let mut bytes = vec![tag, number];
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text);
        bytes
    }

    /// All messages that came; a last one that is not whole is passed over.
    pub fn read_all(mut bytes: &[u8]) -> Vec<Message> {
        let mut all = Vec::new();
        while let [tag, number, low, high, rest @ ..] = bytes {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let Some((text, after)) = rest.split_at_checked(length) else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            all.push(match tag {
                b'e' => Message::Ended(Ended::Exit(*number)),
                b's' => Message::Ended(Ended::Signal(*number)),
                b'n' => Message::NotFound(text),
                b'x' => Message::NotExecutable(text),
                _ => Message::Failed(KINDS.get(usize::from(*number)).copied().unwrap_or(ErrorKind::Io), text),
            });
            bytes = after;
        }
        all
    }
}

/// What all messages say together; `None` if they say nothing.
///
/// A failure of ours counts more than how the command ended: then its changes may be incomplete.
pub fn outcome(messages: &[Message]) -> Option<Result<Outcome>> {
    let failed = messages.iter().find_map(|message| match message {
        Message::Failed(kind, text) => {
            // One that names this operation already says it once.
            let cause = text.strip_prefix(OPERATION).and_then(|text| text.strip_prefix(": ")).unwrap_or(text);
            Some(Err(Error::new(*kind, OPERATION, "", cause)))
        }
        _ => None,
    });
    let not_started = || {
        messages.iter().find_map(|message| match message {
            Message::NotFound(text) => Some(Ok(Outcome::NotFound(text.clone()))),
            Message::NotExecutable(text) => Some(Ok(Outcome::NotExecutable(text.clone()))),
            _ => None,
        })
    };
    let ended = || {
        messages.iter().find_map(|message| match message {
            Message::Ended(Ended::Exit(code)) => Some(Ok(Outcome::Exit(*code))),
            Message::Ended(Ended::Signal(number)) => Some(Ok(Outcome::Signal(*number))),
            _ => None,
        })
    };
    failed.or_else(not_started).or_else(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe_and_a_cut_one_is_dropped() {
        let mut all = vec![
            Message::Ended(Ended::Exit(255)),
            Message::Ended(Ended::Signal(9)),
            Message::NotFound("x: not found".into()),
            Message::NotExecutable(String::new()),
        ];
        all.extend(KINDS.map(|kind| Message::Failed(kind, format!("{kind:?}"))));
        let bytes: Vec<u8> = all.iter().flat_map(Message::bytes).collect();
        assert_eq!(Message::read_all(&bytes), all);
        assert_eq!(Message::read_all(&bytes[..bytes.len() - 1]), all[..all.len() - 1]);
        assert_eq!(Message::read_all(&[]), []);
        let long = Message::NotFound("x".repeat(10_000)).bytes();
        assert_eq!(Message::read_all(&long), [Message::NotFound("x".repeat(MAX_TEXT))]);
    }

    #[test]
    fn a_failure_counts_more_than_the_end_of_the_command() {
        let ended = Message::Ended(Ended::Exit(127));
        let failed = Message::Failed(ErrorKind::Busy, "unmount: it is busy".into());
        let missing = Message::NotFound("ls: not found".into());
        assert!(outcome(&[]).is_none());
        assert_eq!(outcome(std::slice::from_ref(&ended)).unwrap().unwrap(), Outcome::Exit(127));
        let both = outcome(&[missing.clone(), ended.clone()]).unwrap().unwrap();
        assert_eq!(both, Outcome::NotFound("ls: not found".into()));
        let error = outcome(&[ended, missing, failed]).unwrap().unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Busy, "exec: unmount: it is busy".to_owned())
        );
        let inner = Error::new(ErrorKind::NotFound, OPERATION, "enter directory /x", "there is none");
        let error = outcome(&[Message::of(&inner)]).unwrap().unwrap_err();
        assert_eq!(error.to_string(), inner.to_string());
    }
}
