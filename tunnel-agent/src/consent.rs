//! Consent on site: a tunnel to a service that asks for it carries nothing there until a person at the device has said yes.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tunnel_proto::Code;

/// How a tunnel stands with the people on site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// None of its services asks.
    Needless,
    /// Nobody has answered yet, and has time until then.
    Asked(Instant),
    /// Somebody said yes, for as long as the tunnel lives.
    Given,
    /// Somebody said no.
    Denied,
}

/// The consent to one tunnel. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Consent(watch::Sender<State>);

impl Consent {
    /// A tunnel that needs none.
    pub(crate) fn needless() -> Self {
        Self(watch::Sender::new(State::Needless))
    }

    /// Asks those on site, who have so much time.
    pub(crate) fn ask(now: Instant, patience: Duration) -> Self {
        Self(watch::Sender::new(State::Asked(now + patience)))
    }

    /// Takes in what somebody on site says; an answer counts once, and only if it was asked for.
    pub(crate) fn answer(&self, yes: bool) -> bool {
        self.0.send_if_modified(|state| {
            let asked = matches!(state, State::Asked(_));
            if asked {
                *state = if yes { State::Given } else { State::Denied };
            }
            asked
        })
    }

    /// Returns until when somebody can answer, while nobody has.
    pub(crate) fn asks_until(&self) -> Option<Instant> {
        match *self.0.borrow() {
            State::Asked(until) => Some(until),
            _ => None,
        }
    }

    /// Waits until consent is given; for ever where the tunnel ends instead.
    ///
    /// # Errors
    /// [`Code::LocalPolicy`] where it was never asked for: the owner asks for it since.
    pub(crate) async fn given(&self) -> Result<(), Code> {
        let mut state = self.0.subscribe();
        let given = state
            .wait_for(|state| matches!(state, State::Needless | State::Given))
            .await;
        match given.as_deref() {
            Ok(State::Given) => Ok(()),
            _ => Err(Code::LocalPolicy),
        }
    }

    /// Returns why a session never began that waited for it.
    pub(crate) fn missing(&self) -> Code {
        match *self.0.borrow() {
            State::Denied => Code::ConsentDenied,
            _ => Code::ConsentTimeout,
        }
    }

    /// Waits until it is clear that there will be no consent, and returns why.
    pub(crate) async fn refused(&self) -> Code {
        let mut states = self.0.subscribe();
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Denied => return Code::ConsentDenied,
                State::Asked(until) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => return Code::ConsentTimeout,
                        _ = states.changed() => {}
                    }
                }
                State::Needless | State::Given => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_once_and_in_time() {
        let now = || tokio::time::Instant::now().into_std();
        let yes = Consent::ask(now(), MINUTE);
        assert!(yes.asks_until().is_some() && yes.answer(true) && !yes.answer(false));
        assert_eq!((yes.given().await, yes.asks_until()), (Ok(()), None));
        assert!(tokio::time::timeout(MINUTE * 9, yes.refused()).await.is_err());

        let no = Consent::ask(now(), MINUTE);
        assert!(no.answer(false) && !no.answer(true));
        assert_eq!(no.refused().await, Code::ConsentDenied);
        assert!(tokio::time::timeout(MINUTE * 9, no.given()).await.is_err());

        let silence = Consent::ask(now(), MINUTE);
        assert_eq!(silence.refused().await, Code::ConsentTimeout);

        let needless = Consent::needless();
        assert!(!needless.answer(true));
        assert_eq!(needless.given().await, Err(Code::LocalPolicy));
    }
}
