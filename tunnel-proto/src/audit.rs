//! The audit chain as anybody can check it, offline: each record holds the hash of the one before, and signed checkpoints
//! hold the head, so that a cut tail is found too.

use std::cmp::Ordering;

use crate::api::{AuditRecord, audit_hash};
use crate::code::Code;
use crate::cose::{Purpose, SigningKey, VerifyingKey};
use crate::grant::code_of;
use crate::ids::{hex, unhex};
use crate::time::UnixTime;

/// The place in the chain that has been reached: the last record and its hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Number of the last record; 0 for the empty chain.
    pub seq: u64,
    /// Hash of the last record; zeros for the empty chain.
    pub hash: [u8; 32],
}

impl Head {
    /// The empty chain.
    pub const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// Checks that `record` comes next, and returns the head with it.
    ///
    /// # Errors
    /// Names the record and what is wrong with it.
    pub fn then(&self, record: &AuditRecord) -> Result<Self, Broken> {
        let seq = self.seq.saturating_add(1);
        let broken = |fault| Err(Broken { seq, fault });
        let found = record.seq;
        match found.cmp(&seq) {
            Ordering::Greater => return broken(Fault::Gap { found }),
            Ordering::Less => return broken(Fault::Again { found }),
            Ordering::Equal => {}
        }
        // Compared as text: there is one spelling of a hash.
        if record.prev != hex(&self.hash) {
            return broken(Fault::Link);
        }
        let hash = audit_hash(&self.hash, seq, record.time_millis, &record.kind, &record.body);
        if record.hash != hex(&hash) {
            return broken(Fault::Content);
        }
        Ok(Self { seq, hash })
    }
}

/// Checks records that follow `from`, and returns the head after the last of them (THREATS AUD-01).
///
/// # Errors
/// Names the first record that does not belong there.
pub fn verify(from: Head, records: &[AuditRecord]) -> Result<Head, Broken> {
    records.iter().try_fold(from, |head, record| head.then(record))
}

/// The first place where a chain is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audit record {seq} {fault}")]
pub struct Broken {
    /// Number of the record that should stand there.
    pub seq: u64,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// What is wrong at a place of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not there.
    #[error("is missing: record {found} stands in its place")]
    Gap {
        /// The number that was found.
        found: u64,
    },
    /// It stands further down.
    #[error("is out of its order: record {found} stands in its place")]
    Order {
        /// The number that was found.
        found: u64,
    },
    /// One of before stands there again, or one was put in.
    #[error("is not what follows: record {found} stands there again")]
    Again {
        /// The number that was found.
        found: u64,
    },
    /// The record does not follow the one before it.
    #[error("does not follow the record before it")]
    Link,
    /// The record was changed.
    #[error("was changed after it was written")]
    Content,
    /// A signed checkpoint knows another one at its place.
    #[error("differs from the signed checkpoint")]
    Checkpoint,
    /// A signed checkpoint knows more records than there are.
    #[error("is missing: the trail ends with record {last}, and a signed checkpoint knows more")]
    Tail {
        /// Number of the last record that is there.
        last: u64,
    },
}

impl Broken {
    /// Tells a record that was moved from one that is gone, by the numbers that follow the place of the fault.
    #[must_use]
    pub fn with_rest(mut self, rest: impl IntoIterator<Item = u64>) -> Self {
        if let Fault::Gap { found } = self.fault
            && rest.into_iter().any(|seq| seq == self.seq)
        {
            self.fault = Fault::Order { found };
        }
        self
    }
}

/// A head that the server signed at some time. Whoever holds one finds out if the chain is cut or rolled back later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Checkpoint {
    /// Number of the last record.
    #[n(0)]
    pub seq: u64,
    /// Hash of the last record.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When it was signed.
    #[n(2)]
    pub time: UnixTime,
}

impl Checkpoint {
    /// Makes a checkpoint of a head.
    pub const fn of(head: Head, time: UnixTime) -> Self {
        Self {
            seq: head.seq,
            hash: head.hash,
            time,
        }
    }

    /// Signs the checkpoint.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let mut payload = Vec::with_capacity(64);
        let written = minicbor::encode(self, &mut payload);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        key.sign(Purpose::AuditCheckpoint, &payload)
    }

    /// Checks the signature and reads the checkpoint.
    ///
    /// # Errors
    /// Returns why the message is no checkpoint of this key.
    pub fn verify(message: &[u8], key: &VerifyingKey) -> Result<Self, Code> {
        let payload = key.verify(Purpose::AuditCheckpoint, message).map_err(code_of)?;
        minicbor::decode(payload).map_err(|_| Code::TokenMalformed)
    }

    /// Checks that a chain still has the record that was signed (THREATS AUD-02). `records` is the whole chain, verified.
    ///
    /// # Errors
    /// Names the record that is gone or another one.
    pub fn fits(&self, records: &[AuditRecord]) -> Result<(), Broken> {
        let found = match self.seq {
            0 => Some([0; 32]),
            seq => records
                .iter()
                .find(|record| record.seq == seq)
                .and_then(|record| unhex(&record.hash)),
        };
        self.fits_record(found, records.last().map_or(0, |record| record.seq))
    }

    /// Checks the hash that was found at the checkpoint's place, in a chain that ends with `last`.
    ///
    /// # Errors
    /// As [`Checkpoint::fits`].
    pub fn fits_record(&self, found: Option<[u8; 32]>, last: u64) -> Result<(), Broken> {
        let fault = match found {
            Some(hash) if hash == self.hash => return Ok(()),
            None if last < self.seq => Fault::Tail { last },
            _ => Fault::Checkpoint,
        };
        // Of a tail that was cut, the first record that is missing is named.
        let seq = match fault {
            Fault::Tail { last } => last + 1,
            _ => self.seq,
        };
        Err(Broken { seq, fault })
    }
}

/// What stands in place of the records that were dropped because of their age: signed, so that nobody else can drop any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Dropped {
    /// Number of the last record that was dropped. The first was 1, and none between them is left.
    #[n(0)]
    pub last: u64,
    /// Hash of that record, which the first one that is left continues.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When it was dropped.
    #[n(2)]
    pub time: UnixTime,
}

impl Dropped {
    /// Returns where the rest of the chain begins.
    pub const fn head(&self) -> Head {
        Head {
            seq: self.last,
            hash: self.hash,
        }
    }

    /// Signs the statement.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let mut payload = Vec::with_capacity(64);
        let written = minicbor::encode(self, &mut payload);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        key.sign(Purpose::AuditDropped, &payload)
    }

    /// Checks the signature and reads the statement.
    ///
    /// # Errors
    /// Returns why the message is no statement of this key.
    pub fn verify(message: &[u8], key: &VerifyingKey) -> Result<Self, Code> {
        let payload = key.verify(Purpose::AuditDropped, message).map_err(code_of)?;
        minicbor::decode(payload).map_err(|_| Code::TokenMalformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;
    use proptest::prelude::*;

    fn chain(count: u64) -> Vec<AuditRecord> {
        let mut head = Head::START;
        (1..=count)
            .map(|seq| {
                let (kind, body) = (format!("test.kind{}", seq % 3), format!("{{\"n\":{seq}}}"));
                let hash = audit_hash(&head.hash, seq, seq * 7, &kind, &body);
                let prev = hex(&head.hash);
                head = Head { seq, hash };
                AuditRecord {
                    seq,
                    time_millis: seq * 7,
                    kind,
                    body,
                    prev,
                    hash: hex(&hash),
                }
            })
            .collect()
    }

    fn key() -> SigningKey {
        SigningKey::from_seed(&Secret::new([5; 32])).unwrap()
    }

    #[test]
    fn a_whole_chain_passes_at_once_and_in_pages() {
        let records = chain(10);
        let head = verify(Head::START, &records).unwrap();
        assert_eq!(head.seq, 10);
        let half = verify(Head::START, &records[..4]).unwrap();
        assert_eq!(verify(half, &records[4..]), Ok(head));
        assert_eq!(verify(Head::START, &[]), Ok(Head::START));
    }

    #[test]
    fn each_fault_is_named_with_its_record() {
        let mut changed = chain(5);
        changed[2].body.push(' ');
        assert_eq!(
            verify(Head::START, &changed),
            Err(Broken {
                seq: 3,
                fault: Fault::Content
            })
        );
        let mut deleted = chain(5);
        deleted.remove(1);
        assert_eq!(
            verify(Head::START, &deleted),
            Err(Broken {
                seq: 2,
                fault: Fault::Gap { found: 3 }
            })
        );
        let mut other = chain(5);
        other[3].prev = "0".repeat(64);
        assert_eq!(
            verify(Head::START, &other),
            Err(Broken {
                seq: 4,
                fault: Fault::Link
            })
        );
        let text = Broken {
            seq: 3,
            fault: Fault::Content,
        }
        .to_string();
        assert_eq!(text, "audit record 3 was changed after it was written");
    }

    #[test]
    fn a_record_that_was_moved_is_told_from_one_that_is_gone_and_one_that_comes_again() {
        let fault = |order: &[usize]| {
            let records = chain(5);
            let order: Vec<_> = order.iter().map(|at| records[*at - 1].clone()).collect();
            let broken = verify(Head::START, &order).unwrap_err();
            broken.with_rest(order.iter().map(|record| record.seq))
        };
        let broken = |seq, fault| Broken { seq, fault };
        assert_eq!(fault(&[1, 3, 2, 4, 5]), broken(2, Fault::Order { found: 3 }));
        assert_eq!(fault(&[1, 3, 4, 5]), broken(2, Fault::Gap { found: 3 }));
        assert_eq!(fault(&[1, 2, 2, 3]), broken(3, Fault::Again { found: 2 }));
    }

    #[test]
    fn what_is_left_continues_what_was_dropped() {
        let records = chain(6);
        let dropped = Dropped {
            last: 3,
            hash: unhex(&records[2].hash).unwrap(),
            time: UnixTime::from_secs(9),
        };
        let read = Dropped::verify(&dropped.sign(&key()), &key().verifying_key()).unwrap();
        assert_eq!(read, dropped);
        assert_eq!(verify(read.head(), &records[3..]).map(|head| head.seq), Ok(6));
        assert!(verify(read.head(), &records[4..]).is_err());
        let checkpoint = Checkpoint::of(read.head(), UnixTime::from_secs(9)).sign(&key());
        assert_eq!(
            Dropped::verify(&checkpoint, &key().verifying_key()),
            Err(Code::TokenAlg)
        );
    }

    /// THREATS AUD-02.
    #[test]
    fn a_cut_tail_is_found_by_a_checkpoint() {
        let records = chain(6);
        let head = verify(Head::START, &records).unwrap();
        let signed = Checkpoint::of(head, UnixTime::from_secs(9)).sign(&key());
        let checkpoint = Checkpoint::verify(&signed, &key().verifying_key()).unwrap();
        assert_eq!(checkpoint.fits(&records), Ok(()));
        let gone = |last| {
            Err(Broken {
                seq: last + 1,
                fault: Fault::Tail { last },
            })
        };
        assert_eq!(checkpoint.fits(&records[..5]), gone(5));
        assert_eq!(checkpoint.fits(&[]), gone(0));
        let mut forked = chain(5);
        let mut last = chain(6).remove(5);
        last.body = "{}".into();
        let head = verify(Head::START, &forked).unwrap();
        last.hash = hex(&audit_hash(
            &head.hash,
            6,
            last.time_millis,
            &last.kind,
            &last.body,
        ));
        forked.push(last);
        assert!(verify(Head::START, &forked).is_ok());
        let other = Err(Broken {
            seq: 6,
            fault: Fault::Checkpoint,
        });
        assert_eq!(checkpoint.fits(&forked), other);
        assert_eq!(
            Checkpoint::of(Head::START, UnixTime::from_secs(1)).fits(&[]),
            Ok(())
        );
    }

    #[test]
    fn a_checkpoint_of_another_key_is_refused() {
        let signed = Checkpoint::of(Head::START, UnixTime::from_secs(9)).sign(&key());
        let other = SigningKey::from_seed(&Secret::new([6; 32])).unwrap();
        assert_eq!(
            Checkpoint::verify(&signed, &other.verifying_key()),
            Err(Code::TokenAlg)
        );
        let grant = key().sign(Purpose::Grant, b"");
        assert_eq!(
            Checkpoint::verify(&grant, &key().verifying_key()),
            Err(Code::TokenAlg)
        );
    }

    /// An edit as somebody with the file could make it.
    #[derive(Clone, Debug)]
    enum Edit {
        Body(usize, char),
        Kind(usize, char),
        Time(usize, u64),
        Delete(usize),
        Repeat(usize),
        Swap(usize, usize),
        Rehash(usize),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            (any::<usize>(), any::<char>()).prop_map(|(at, c)| Edit::Body(at, c)),
            (any::<usize>(), any::<char>()).prop_map(|(at, c)| Edit::Kind(at, c)),
            (any::<usize>(), 1..1000u64).prop_map(|(at, by)| Edit::Time(at, by)),
            any::<usize>().prop_map(Edit::Delete),
            any::<usize>().prop_map(Edit::Repeat),
            (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Edit::Swap(a, b)),
            any::<usize>().prop_map(Edit::Rehash),
        ]
    }

    /// Makes the edit and returns the place of the first record that differs; `None` if nothing differs.
    fn apply(records: &mut Vec<AuditRecord>, edit: &Edit) -> Option<usize> {
        let (before, length) = (records.clone(), records.len());
        match *edit {
            Edit::Body(at, c) => records[at % length].body.push(c),
            Edit::Kind(at, c) => records[at % length].kind.insert(0, c),
            Edit::Time(at, by) => records[at % length].time_millis += by,
            Edit::Delete(at) => drop(records.remove(at % length)),
            Edit::Repeat(at) => records.insert(at % length, before[at % length].clone()),
            Edit::Swap(a, b) => records.swap(a % length, b % length),
            Edit::Rehash(at) => {
                let record = &mut records[at % length];
                record.body.push('x');
                let prev = unhex(&record.prev).unwrap();
                let hash = audit_hash(&prev, record.seq, record.time_millis, &record.kind, &record.body);
                record.hash = hex(&hash);
            }
        }
        (0..records.len())
            .find(|&at| before.get(at) != Some(&records[at]))
            .or(match records.len() < length {
                true => Some(records.len()),
                false => None,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// THREATS AUD-01. A cut tail is the one edit that the chain alone cannot show: the checkpoint does.
        #[test]
        fn every_edit_is_found_at_its_first_record(edit in edit()) {
            let mut records = chain(8);
            let checkpoint = Checkpoint::of(verify(Head::START, &records).unwrap(), UnixTime::from_secs(1));
            let first = apply(&mut records, &edit);
            let outcome = verify(Head::START, &records).and_then(|_| checkpoint.fits(&records));
            match first {
                None => prop_assert_eq!(outcome, Ok(())),
                Some(at) => {
                    let broken = outcome.unwrap_err();
                    // A record that was changed together with its own hash shows at the next one, or at the checkpoint.
                    let late = u64::from(matches!(edit, Edit::Rehash(_)) && at < 7);
                    prop_assert_eq!(broken.seq, at as u64 + 1 + late);
                }
            }
        }
    }
}
