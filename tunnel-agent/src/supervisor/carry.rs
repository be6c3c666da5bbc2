//! Carries messages between a worker and its supervisor.

use std::os::fd::OwnedFd;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tunnel_proto::handover::Message;

use super::Event;
use crate::channel::Channel;

/// Carries messages until the worker is gone, or nothing more is said to it.
///
/// When the supervisor leaves, this passes on what it has read, lets go of `events`, and only speaks from there on: what the
/// worker says stays in its socket for the successor.
pub(super) async fn carry(
    number: u64,
    fd: OwnedFd,
    mut inbox: mpsc::Receiver<Message>,
    events: mpsc::Sender<Event>,
    leaving: CancellationToken,
) {
    let mut events = Some(events);
    if let Ok(mut channel) = Channel::new(fd) {
        loop {
            // All are cancel-safe.
            tokio::select! {
                () = leaving.cancelled(), if events.is_some() => events = None,
                message = inbox.recv() => match message {
                    Some(message) => channel.send(&message),
                    None => {
                        channel.flushed().await;
                        break;
                    }
                },
                said = channel.recv(), if events.is_some() => match (said, &events) {
                    (Some(message), Some(events)) => drop(events.send((number, Some(message))).await),
                    _ => break,
                },
            }
        }
    }
    if let Some(events) = events {
        let _ = events.send((number, None)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::channel;

    fn said(number: usize) -> Message {
        Message::Status(number.to_string())
    }

    #[tokio::test]
    async fn what_is_not_read_when_the_supervisor_leaves_is_its_successors() {
        let (above, below) = channel::pair().unwrap();
        // The service manager has it, too.
        let kept = above.try_clone().unwrap();
        let mut below = Channel::new(below).unwrap();
        let (outbox, inbox) = mpsc::channel(8);
        let (events, mut heard) = mpsc::channel(1);
        let leaving = CancellationToken::new();
        let mut carrying = JoinSet::new();
        carrying.spawn(carry(7, above, inbox, events, leaving.clone()));
        // More than is taken at once.
        (0..10).for_each(|number| below.send(&said(number)));
        let mut all: Vec<_> = heard
            .recv()
            .await
            .and_then(|(_, said)| said)
            .into_iter()
            .collect();
        leaving.cancel();
        while let Some((_, said)) = heard.recv().await {
            all.push(said.unwrap());
        }
        outbox.send(Message::Reload).await.unwrap();
        assert_eq!(below.recv().await, Some(Message::Reload), "it is still spoken to");
        below.send(&said(10));
        drop(outbox);
        carrying.join_next().await.unwrap().unwrap();
        let mut successor = Channel::new(kept).unwrap();
        while all.len() < 11 {
            all.push(successor.recv().await.unwrap());
        }
        assert_eq!(all, (0..11).map(said).collect::<Vec<_>>(), "each once, in order");
    }
}
