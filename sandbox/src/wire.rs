//! What the processes tell each other.

use lazaret_containers::format::Found;
use lazaret_containers::windows::{WINDOW_BYTES_MAX, WINDOWS};
use lazaret_containers::{ExtractionOutcome, FileType, Limits, Passwords, TreeUse, Turn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::channel::MESSAGE_BYTES_MAX;

/// How much content goes into one block of the shared memory.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// So many blocks may be on their way: the job process works on while the worker looks at what came.
pub(crate) const BLOCKS: u64 = 4;
/// Members are shown to their types' detection up to this length, and told in pieces of it. Each begins in a block's first half.
pub(crate) const PIECE_BYTES: usize = BLOCK_BYTES / 2;
/// How much of a file that is not in memory is handed in: windows, which lie one behind the other in the input.
pub(crate) const INPUT_BYTES: u64 = WINDOWS as u64 * WINDOW_BYTES_MAX;
/// The longest answer about a file or a member that is told with its type.
pub(crate) const REMARK_BYTES_MAX: usize = 16 * 1024;
/// The longest record: the longest name, and a type with as many containers as there may be.
pub(crate) const RECORD_BYTES_MAX: usize = 64 * 1024;
/// The longest list of records: what goes into a message beside their count and the like.
pub(crate) const RECORDS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;

/// The worker to a zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// Is told first. What its jobs are to have at hand travels along, if there is anything.
    Prepare,
    /// It is to fork a template for the socket that travels along.
    Plant,
    /// Its templates have been killed: it is to see them off, and end.
    End,
}

/// A zygote to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromZygote {
    /// It is confined and forks templates.
    Ready,
    /// It can't be confined, or can't do its work.
    Refused(String),
    /// It forked one with this process id, which is no other process's until the zygote is told the next thing.
    Planted(i32),
    /// No template could be forked.
    NotPlanted(String),
}

/// A template to the worker: its job process has ended. Job processes have no access to the socket that says so.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended(pub Ending);

/// How a job process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// It could not be begun.
    NotBegun,
}

/// The worker to a template. The job's socket, input, output and the place for its last words travel along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// How much processor time the job may take, in seconds.
    pub cpu_seconds: u64,
    /// How much memory it may have of its own, in bytes.
    pub memory_bytes: u64,
}

/// The worker to a job process, at first: the file that it has.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub name: String,
    pub length: u64,
    /// Whether the input holds all of the file. Otherwise it is handed in on demand.
    pub whole: bool,
    /// What the file is, if that is known already. Otherwise it is told first of all.
    pub containers: Option<Vec<Found>>,
    /// What is to be answered about the file as it tells what that is, if it is short.
    pub standing: Option<Vec<u8>>,
}

/// How a file is to be taken apart.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// How many of its containers are not to be taken apart, since that was tried before.
    pub skip: u32,
    /// Whether others take parts of it, so that it is to be asked which members are wanted.
    pub shared: bool,
    pub limits: Limits,
    /// What of them is used.
    pub used: TreeUse,
    pub passwords: Passwords,
    /// What is to be answered about each short member on the way.
    pub standing: Option<Vec<u8>>,
}

/// The worker to a job process, afterwards.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToJob {
    /// It is to take the file apart. It ends with that.
    TakeApart(Terms),
    /// It is to take this file apart, all of which is in the input, as the next message says, and to wait for what comes then.
    Another(Task),
    /// It is to answer this about the file.
    Ask(Vec<u8>),
    /// It is to answer this about so many bytes of the input, whatever the file is.
    AskAbout(u64, Vec<u8>),
    /// It has copied what it needs of the oldest block.
    Copied,
    /// The window has this much of the file, from the asked place on.
    Filled(u64),
    /// That part of the file can't be had.
    NotReadable,
    /// These members are wanted; none, if there is no more to be handed out.
    Turn(Option<(u32, u32)>),
}

/// A job process to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromJob {
    /// These records follow, so many bytes of content are in the next block, and so much of the file was read up to now.
    Block(Records, u32, u64),
    /// It needs the file in this window: from this place on, so many bytes.
    Read(u32, u64, u64),
    /// It asks which members are wanted, having read so much of the file up to now.
    Turn(Turn, u64),
}

/// Records, each behind its length in 32 bits.
#[derive(Debug, Default)]
pub(crate) struct Records(pub Vec<u8>);

impl Serialize for Records {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Records {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Borrowed from the message, whose length is bounded: as bytes one by one it would take ten times as long.
        <&[u8]>::deserialize(deserializer).map(|records| Self(records.to_vec()))
    }
}

/// A record of a job's output. Contents that it speaks of are in the block that it comes with, in the order of the records.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    /// What the file is. The remark is the answer about it, if one was to be given.
    Type { file_type: FileType, remark: Option<Vec<u8>> },
    /// Its type could not be told.
    NoType(String),
    /// A member begins. The remark is the answer about it, if one was to be given.
    Member { name: String, length_hint: Option<u64>, file_type: Option<FileType>, remark: Option<Vec<u8>> },
    /// So many bytes of the member are next in the block.
    Data(u32),
    /// The member ends, with what broke it.
    MemberEnd(Option<String>),
    /// One container came apart, or did not.
    Outcome(ExtractionOutcome),
    /// The answer to what was asked, in so many bytes that are next in the block.
    Answer(u32),
    /// A shared container had so many members, those of others included. Told if the walk came to its end.
    Walked(u32),
    /// It was taken apart. So much was read again in other ways than the first.
    Done { reread_bytes: u64 },
}
