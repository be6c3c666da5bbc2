//! A batch of commands inside a tunnel: asked for, and what comes of it checked.

use tunnel_net::stream::{self, MessageError};
use tunnel_proto::batch::{Batch, Ran};
use tunnel_proto::message::OpenSession;
use tunnel_proto::{Code, ServiceName};

use super::session::{SLOW, SessionError, answer, classify, patiently};

/// Most bytes that a command may write, whatever a device's owner allows: they may be kept in memory.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

/// How far a batch is: each command writes and ends, one after the other.
#[derive(Debug)]
struct Progress {
    commands: u32,
    at: u32,
    bytes: usize,
}

impl Progress {
    fn new(batch: &Batch) -> Self {
        Self {
            commands: u32::try_from(batch.commands().len()).unwrap_or(u32::MAX),
            at: 0,
            bytes: 0,
        }
    }

    fn is_done(&self) -> bool {
        self.at >= self.commands
    }

    /// Takes in what came of a command.
    ///
    /// # Errors
    /// Refuses what is out of order, and more than can be.
    fn take(&mut self, ran: &Ran) -> Result<(), Code> {
        if self.is_done() || ran.command != self.at {
            return Err(Code::Protocol);
        }
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        self.bytes += length(&ran.stdout) + length(&ran.stderr);
        if self.bytes > MAX_OUTPUT {
            return Err(Code::TooLarge);
        }
        if ran.end.is_some() {
            self.at += 1;
            self.bytes = 0;
        }
        Ok(())
    }
}

/// A batch that is being run. Dropped before each command has ended, the device ends what runs.
#[derive(Debug)]
pub struct Running {
    connection: quinn::Connection,
    recv: quinn::RecvStream,
    progress: Progress,
}

impl Running {
    /// Has a batch run. `slow` is called if the answer takes a while.
    ///
    /// # Errors
    /// Tells why there is none. A refusal means that nothing was run.
    pub async fn start(
        connection: &quinn::Connection,
        service: &ServiceName,
        batch: &Batch,
        slow: impl FnOnce(),
    ) -> Result<Self, SessionError> {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| SessionError::Tunnel)?;
        let request = OpenSession {
            service: service.to_string(),
        };
        for written in [
            stream::write_message(&mut send, &request).await,
            stream::write_message(&mut send, batch).await,
        ] {
            written.map_err(|error| classify(connection, error))?;
        }
        let _ = send.finish();
        {
            let answer = std::pin::pin!(answer(connection, &mut recv));
            patiently(answer, SLOW, slow).await?;
        }
        Ok(Self {
            connection: connection.clone(),
            recv,
            progress: Progress::new(batch),
        })
    }

    /// Returns what comes next of it, and nothing when each command has ended. Not cancel-safe.
    ///
    /// # Errors
    /// Tells who ended it early.
    pub async fn next(&mut self) -> Result<Option<Ran>, SessionError> {
        if self.progress.is_done() {
            return Ok(None);
        }
        let ran = match stream::read_message::<Ran>(&mut self.recv).await {
            Ok(ran) => ran,
            Err(MessageError::Frame(_)) => return Err(SessionError::Refused(Code::Protocol.into())),
            Err(MessageError::Ended) => return Err(SessionError::Broken),
            Err(MessageError::Stream(error)) => return Err(classify(&self.connection, error)),
        };
        let taken = self.progress.take(&ran);
        taken.map_err(|code| SessionError::Refused(code.into()))?;
        Ok(Some(ran))
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::batch::CommandEnd;

    use super::*;

    fn wrote(command: u32, bytes: usize) -> Ran {
        Ran {
            command,
            stdout: Some(vec![0; bytes]),
            ..Ran::default()
        }
    }

    fn ended(command: u32) -> Ran {
        Ran {
            command,
            end: Some(CommandEnd::default()),
            ..Ran::default()
        }
    }

    #[test]
    fn commands_write_and_end_one_after_the_other() {
        let batch = Batch::new(vec![vec!["/a".into()], vec!["/b".into()]]).unwrap();
        let mut progress = Progress::new(&batch);
        for ran in [wrote(0, 9), ended(0), wrote(1, MAX_OUTPUT), ended(1)] {
            assert!(!progress.is_done());
            assert_eq!(progress.take(&ran), Ok(()));
        }
        assert!(progress.is_done());
        for (before, wrong, code) in [
            (vec![], wrote(1, 1), Code::Protocol),
            (vec![ended(0)], wrote(0, 1), Code::Protocol),
            (vec![ended(0)], ended(2), Code::Protocol),
            (vec![ended(0), ended(1)], wrote(2, 1), Code::Protocol),
            (vec![wrote(0, MAX_OUTPUT)], wrote(0, 1), Code::TooLarge),
        ] {
            let mut progress = Progress::new(&batch);
            for ran in before {
                progress.take(&ran).unwrap();
            }
            assert_eq!(progress.take(&wrong), Err(code));
        }
    }
}
