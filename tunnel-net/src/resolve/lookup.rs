//! One question to the system's resolver at a time for each name.
//!
//! The system's own resolver is asked, because it knows hosts files, search lists and split DNS. It has no deadline of
//! ours and cannot be interrupted, so it runs in a thread of its own, and who asks again while it hangs joins the
//! question that is under way: neither threads nor the end of a program wait for it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// What the resolver said; `None` while it has not.
pub(super) type Said = Option<Result<Vec<IpAddr>, (io::ErrorKind, String)>>;

/// A question that was asked.
#[derive(Debug, Clone)]
pub(super) struct Question(watch::Receiver<Said>);

static ASKED: Mutex<BTreeMap<String, Question>> = Mutex::new(BTreeMap::new());

/// Names that are asked for at once, at most: a server, a proxy, and the name of RFC 7050.
const MOST: usize = 16;

/// Stack of the thread that asks, in bytes: the C library's resolver needs about half of it.
const STACK: usize = 256 * 1024;

impl Question {
    /// Asks for the addresses of a name, unless that is being done already.
    pub(super) fn ask(host: &str) -> Self {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, question| question.0.borrow().is_none() && question.0.has_changed().is_ok());
        if let Some(question) = asked.get(host) {
            return question.clone();
        }
        let (answer, receiver) = watch::channel(None);
        let question = Self(receiver);
        let name = host.to_owned();
        let asker = std::thread::Builder::new()
            .name("resolver".into())
            .stack_size(STACK);
        let full = asked.len() >= MOST;
        let started = match full {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => asker.spawn(move || answer.send_replace(Some(resolve(&name)))),
        };
        if started.is_ok() {
            asked.insert(host.to_owned(), question.clone());
        }
        question
    }

    /// Makes a question whose answer the test gives.
    #[cfg(test)]
    pub(super) fn by_hand() -> (watch::Sender<Said>, Self) {
        let (answer, receiver) = watch::channel(None);
        (answer, Self(receiver))
    }

    /// Waits for the answer. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Returns what the resolver says.
    pub(super) async fn answer(&mut self) -> io::Result<Vec<IpAddr>> {
        let said = match self.0.wait_for(Option::is_some).await {
            Ok(said) => said.clone(),
            Err(_) => None,
        };
        match said {
            Some(Ok(found)) => Ok(found),
            Some(Err((kind, text))) => Err(io::Error::new(kind, text)),
            None => Err(io::Error::other("the resolver could not be started")),
        }
    }
}

fn resolve(host: &str) -> Result<Vec<IpAddr>, (io::ErrorKind, String)> {
    let found = (host, 0)
        .to_socket_addrs()
        .map_err(|error| (error.kind(), error.to_string()))?;
    let found: Vec<_> = found.map(|addr: SocketAddr| addr.ip()).collect();
    if found.is_empty() {
        return Err((io::ErrorKind::NotFound, format!("`{host}` has no address")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_and_those_that_are_none_are_refused() {
        let found = Question::ask("localhost").answer().await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        // RFC 6761 section 6.4: this name never exists.
        assert!(Question::ask("relay.invalid").answer().await.is_err());
    }

    #[tokio::test]
    async fn a_question_can_be_asked_again_after_its_answer() {
        for _ in 0..3 {
            let (mut one, mut other) = (Question::ask("localhost"), Question::ask("localhost"));
            assert_eq!(one.answer().await.unwrap(), other.answer().await.unwrap());
        }
    }
}
