//! Batches of commands: what a service that runs commands is asked to run, the hash by which an approval is bound to it, and
//! what comes back.
//!
//! There is no shell in any of this: a command is a program and its arguments, word by word.

pub mod words;

use std::fmt;
use std::str::FromStr;

use minicbor::{Decoder, Encoder};

use crate::code::Refusal;
use crate::ids::{hex, unhex};

/// Most commands of one batch.
pub const MAX_COMMANDS: usize = 64;

/// Most words of one command, the program's path among them.
pub const MAX_WORDS: usize = 64;

/// Most bytes of a batch, as [`Batch::bytes`] counts them: those who approve it read it, and it stands in records.
pub const MAX_BYTES: usize = 8 * 1024;

/// What the hash of a batch begins with, so that it is the hash of nothing else.
const LABEL: &[u8] = b"tunnel batch v1";

/// Commands to be run one after the other, each a program's absolute path and its arguments. Within the bounds, by its form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch(Vec<Vec<String>>);

/// Tells why a list of commands is no batch. Commands count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// There is nothing to run.
    #[error("there is no command")]
    Empty,
    /// There are too many.
    #[error("there are more than {MAX_COMMANDS} commands")]
    Commands,
    /// One has too many words.
    #[error("command {0} has more than {MAX_WORDS} words")]
    Words(usize),
    /// All together are too long.
    #[error("all commands together have more than {MAX_BYTES} bytes")]
    Bytes,
    /// One does not begin with an absolute path.
    #[error("command {0} does not begin with a program's absolute path, as `/usr/bin/df`")]
    Program(usize),
    /// One has a word that no program can get.
    #[error("command {0} has a zero byte")]
    Zero(usize),
}

impl Batch {
    /// Checks a list of commands.
    ///
    /// # Errors
    /// Tells which command is not of the form, or that there are too many.
    pub fn new(commands: Vec<Vec<String>>) -> Result<Self, BatchError> {
        match commands.len() {
            0 => return Err(BatchError::Empty),
            1..=MAX_COMMANDS => {}
            _ => return Err(BatchError::Commands),
        }
        for (words, number) in commands.iter().zip(1..) {
            if words.len() > MAX_WORDS {
                return Err(BatchError::Words(number));
            }
            if !words.first().is_some_and(|program| program.starts_with('/')) {
                return Err(BatchError::Program(number));
            }
            if words.iter().any(|word| word.contains('\0')) {
                return Err(BatchError::Zero(number));
            }
        }
        let batch = Self(commands);
        if batch.bytes() > MAX_BYTES {
            return Err(BatchError::Bytes);
        }
        Ok(batch)
    }

    /// Returns the commands, each with its program first.
    pub fn commands(&self) -> &[Vec<String>] {
        &self.0
    }

    /// Returns how many bytes its words take in JSON, which is how a batch is stored and shown.
    pub fn bytes(&self) -> usize {
        let written = |c: char| match c {
            '"' | '\\' => 2,
            ..' ' => 6,
            c => c.len_utf8(),
        };
        let words = self.0.iter().flatten();
        // Its quotes and a comma.
        words
            .map(|word| word.chars().map(written).sum::<usize>() + 3)
            .sum()
    }

    /// Hashes the batch: all words in their order, and nothing else.
    ///
    /// # Security
    /// Whatever a later version lets a batch say of how its commands are run has to go in here too.
    pub fn hash(&self) -> BatchHash {
        let mut e = Encoder::new(Vec::new());
        let written = self.write(&mut e);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(LABEL);
        context.update(e.writer());
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        BatchHash(hash)
    }

    /// Writes the list in its one form: deterministic CBOR (RFC 8949 section 4.2.1).
    fn write<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        for words in &self.0 {
            e.array(words.len() as u64)?;
            for word in words {
                e.str(word)?;
            }
        }
        Ok(())
    }
}

/// Reads a list; its lengths are checked before anything is kept.
fn read(d: &mut Decoder<'_>) -> Result<Vec<Vec<String>>, minicbor::decode::Error> {
    let count = bounded(d.array()?, MAX_COMMANDS)?;
    (0..count)
        .map(|_| {
            let count = bounded(d.array()?, MAX_WORDS)?;
            (0..count).map(|_| d.str().map(str::to_owned)).collect()
        })
        .collect()
}

fn bounded(count: Option<u64>, most: usize) -> Result<u64, minicbor::decode::Error> {
    count
        .filter(|count| *count <= most as u64)
        .ok_or_else(|| minicbor::decode::Error::message("a list is too long, or of no length"))
}

/// A batch travels as a map, so that fields can be added.
impl<C> minicbor::Encode<C> for Batch {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.map(1)?.u8(0)?;
        self.write(e)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Batch {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let wrong = |text: &str| minicbor::decode::Error::message(text);
        let mut commands = None;
        for _ in 0..d.map()?.ok_or_else(|| wrong("a map of no length"))? {
            match d.u64()? {
                0 if commands.is_some() => return Err(wrong("two lists of commands")),
                0 => commands = Some(read(d)?),
                _ => d.skip()?,
            }
        }
        let commands = commands.ok_or_else(|| wrong("no commands"))?;
        Self::new(commands).map_err(|error| wrong(&error.to_string()))
    }
}

/// As its list of commands, in stores and records.
#[cfg(feature = "api")]
impl serde::Serialize for Batch {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

#[cfg(feature = "api")]
impl<'de> serde::Deserialize<'de> for Batch {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// SHA-256 of a batch: what an approval, a grant and a record name it by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchHash([u8; 32]);

impl BatchHash {
    /// Takes a hash that was stored or signed.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BatchHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BatchHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchHash({})", hex(&self.0[..4]))
    }
}

/// Tells that a text is no hash of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a batch's hash is 64 hexadecimal digits, in lower case")]
pub struct BatchHashError;

impl FromStr for BatchHash {
    type Err = BatchHashError;

    fn from_str(text: &str) -> Result<Self, BatchHashError> {
        unhex(text).map(Self).ok_or(BatchHashError)
    }
}

#[cfg(feature = "api")]
impl serde::Serialize for BatchHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(feature = "api")]
impl<'de> serde::Deserialize<'de> for BatchHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What comes back of a batch: some of a command's output, or its end. Every command has an end, in the order of the batch.
#[derive(Clone, PartialEq, Eq, Debug, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Ran {
    /// Which command, from 0.
    #[n(0)]
    pub command: u32,
    /// What it wrote to its standard output.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub stdout: Option<Vec<u8>>,
    /// What it wrote to its standard error.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub stderr: Option<Vec<u8>>,
    /// How it ended; nothing more comes of it.
    #[n(3)]
    pub end: Option<CommandEnd>,
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct CommandEnd {
    /// Its exit code, if it ended by itself.
    #[n(0)]
    pub exit: Option<i32>,
    /// The signal that ended it.
    #[n(1)]
    pub signal: Option<i32>,
    /// Why the agent ended it, or could not start it.
    #[n(2)]
    pub why: Option<Refusal>,
    /// How long it took, in milliseconds.
    #[n(3)]
    pub millis: u64,
}

impl CommandEnd {
    /// Says whether the command did what it was to do.
    pub fn is_good(&self) -> bool {
        self.exit == Some(0) && self.why.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame;

    fn list(commands: &[&[&str]]) -> Vec<Vec<String>> {
        let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        commands.iter().map(words).collect()
    }

    fn batch(commands: &[&[&str]]) -> Batch {
        Batch::new(list(commands)).unwrap()
    }

    fn read_back(bytes: &[u8]) -> Result<Batch, frame::FrameError> {
        frame::decode(bytes)
    }

    #[test]
    fn a_batch_has_bounds() {
        let most = vec![vec!["/bin/true".to_owned(); MAX_WORDS]; 8];
        assert!(Batch::new(most).is_ok());
        assert!(Batch::new(vec![vec!["/bin/true".to_owned()]; MAX_COMMANDS]).is_ok());
        let long = "x".repeat(MAX_BYTES - 8);
        assert!(Batch::new(list(&[&["/a", &long]])).is_ok());
        let too_long = format!("{long}x");
        for (commands, why) in [
            (list(&[]), BatchError::Empty),
            (
                vec![vec!["/a".to_owned()]; MAX_COMMANDS + 1],
                BatchError::Commands,
            ),
            (
                list(&[&["/bin/true"], &["/a"; MAX_WORDS + 1]]),
                BatchError::Words(2),
            ),
            (list(&[&["/a", &too_long]]), BatchError::Bytes),
            // What grows when it is stored and shown is counted as what it grows to.
            (list(&[&["/a", &"\n".repeat(1500)]]), BatchError::Bytes),
            (list(&[&["/a", &"\"".repeat(4200)]]), BatchError::Bytes),
            (
                vec![
                    ["/a", ""]
                        .repeat(32)
                        .iter()
                        .map(|&word| word.to_owned())
                        .collect();
                    64
                ],
                BatchError::Bytes,
            ),
            (list(&[&[]]), BatchError::Program(1)),
            (list(&[&["/a"], &["true"]]), BatchError::Program(2)),
            (list(&[&["", "/a"]]), BatchError::Program(1)),
            (list(&[&["/a", "b\0c"]]), BatchError::Zero(1)),
        ] {
            assert_eq!(Batch::new(commands), Err(why));
        }
    }

    #[test]
    fn the_hash_is_of_every_word_in_its_place() {
        let hashed = batch(&[&["/bin/echo", "a", "b"], &["/bin/true"]]).hash();
        assert_eq!(
            hashed.to_string(),
            "a7dd7b978f4e1fd7a9c53699aa5be10bc772a4542ab7327abfdb20d651f9e1a9",
            "it is the same in every release"
        );
        assert_eq!(hashed.to_string().parse(), Ok(hashed));
        for other in [
            batch(&[&["/bin/echo", "a", "b"]]),
            batch(&[&["/bin/true"], &["/bin/echo", "a", "b"]]),
            batch(&[&["/bin/echo", "a b"], &["/bin/true"]]),
            batch(&[&["/bin/echo", "ab"], &["/bin/true"]]),
            batch(&[&["/bin/echo", "a", "b", ""], &["/bin/true"]]),
            batch(&[&["/bin/echo", "a", "b", "/bin/true"]]),
            batch(&[&["/bin/echo", "b", "a"], &["/bin/true"]]),
        ] {
            assert_ne!(other.hash(), hashed, "{other:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_stands_twice_is_refused() {
        let wanted = batch(&[&["/bin/true", "-x"]]);
        let mut e = Encoder::new(Vec::new());
        e.map(2).unwrap().u8(7).unwrap().array(1).unwrap().null().unwrap();
        e.u8(0).unwrap();
        wanted.write(&mut e).unwrap();
        assert_eq!(read_back(e.writer()).unwrap(), wanted);
        let mut twice = Encoder::new(Vec::new());
        twice.map(2).unwrap();
        for _ in 0..2 {
            twice.u8(0).unwrap();
            wanted.write(&mut twice).unwrap();
        }
        assert!(read_back(twice.writer()).is_err());
        assert!(read_back(&[0xa0]).is_err());
        // A list that says it has more than there can be costs nothing.
        let endless = [0xa1, 0, 0x9b, 255, 255, 255, 255, 255, 255, 255, 255];
        assert!(read_back(&endless).is_err());
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_with_its_hash(
            commands in prop::collection::vec(prop::collection::vec("[ -~é\n]{0,6}", 0..4), 1..5)
        ) {
            let commands = commands.into_iter().map(|mut words| { words.insert(0, "/p".into()); words });
            let batch = Batch::new(commands.collect()).unwrap();
            let bytes = frame::encode(&batch);
            let again = read_back(&bytes[frame::HEADER..]).unwrap();
            prop_assert_eq!(again.hash(), batch.hash());
            prop_assert_eq!(again, batch);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = frame::decode::<Ran>(&bytes);
            if let Ok(batch) = read_back(&bytes) {
                prop_assert!(Batch::new(batch.0).is_ok());
            }
        }

        /// What begins like a batch is tried harder than what is of no form at all.
        #[test]
        fn a_batch_that_was_changed_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let good = batch(&[&["/bin/echo", "a"], &["/bin/true"]]);
            let mut bytes = frame::encode(&good)[frame::HEADER..].to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = read_back(&bytes) {
                prop_assert_eq!(read.hash() == good.hash(), read == good);
            }
        }
    }
}
