//! The command line: what can be asked, as clap reads it. Nothing here does any work.

mod user;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::complain;

pub use user::{Place, RoleCommand, UserCommand, UserOptions};

/// A quarantine station for files.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in one process on embedded defaults
    Up(UpOptions),
    /// Scan files and folders and print their verdicts
    Scan(ScanOptions),
    /// Put, get and look up blobs, straight at the storage cluster
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Make a cluster's files; show its state
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at rules (workflows)
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Users, their passwords and keys, roles, and who did what
    User(UserOptions),
    /// Copy the results (analyses, queue, verdicts) and the users to a file, while they are in use
    Backup(BackupOptions),
    /// Put a backup in the place of the results and the users; gateways and scan workers must be stopped
    Restore(RestoreOptions),
    /// Run whole clusters in virtual time under faults drawn from a seed, and check what they promise
    Simulate(SimulateOptions),
    /// Measure how fast the parts are on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Run one storage node
    StorageNode(StorageNodeOptions),
    /// Run one gateway
    Gateway(ComponentOptions),
    /// Run one scan worker
    ScanWorker(ComponentOptions),
}

#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Where everything is kept
    #[arg(long, default_value = "lazaret-data")]
    pub data: PathBuf,
    /// Storage nodes, made on the first start [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: Option<u16>,
    /// Threads that extract and scan
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Copies that must be durable before an upload is acknowledged [default: 2]
    #[arg(long)]
    pub min_replica: Option<u8>,
    /// Copies that a blob should have [default: 3]
    #[arg(long)]
    pub max_replica: Option<u8>,
    /// Where the gateway listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8899")]
    pub listen: SocketAddr,
    /// Where `GET /metrics` is answered, for Prometheus [default: nowhere]
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Settings of the gateway, the scan worker and the log (YAML); README lists them [default: none]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub judging: JudgingOptions,
}

/// What files are judged by, in an embedded cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct JudgingOptions {
    /// A file of rules (YAML) [default: one rule named default]
    #[arg(long = "rules", value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// A file of engines (YAML): what stands below `engines` in a scan worker's configuration [default: the built-in signatures]
    #[arg(long = "engines", value_name = "FILE")]
    pub engines: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ScanOptions {
    /// Files and folders; folders are walked
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// A gateway; without it a temporary embedded cluster is started
    #[arg(long)]
    pub url: Option<String>,
    /// A file that holds the API key (or set LAZARET_APIKEY)
    #[arg(long)]
    pub apikey_file: Option<PathBuf>,
    /// The rule to scan by
    #[arg(long)]
    pub rule: Option<String>,
    #[command(flatten)]
    pub judging: JudgingOptions,
    /// A file of archive passwords, one a line
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// One JSON document a file, one a line
    #[arg(long)]
    pub json: bool,
    /// Files submitted and awaited at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Give up on results once no scan worker has been alive for so long
    #[arg(long, value_name = "SECONDS", default_value_t = crate::scan::WAIT_SECONDS_DEFAULT)]
    pub wait: u64,
    /// A file (PEM) with an authority to trust besides the system's, for https://
    #[arg(long, value_name = "FILE", requires = "url")]
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Check a file of rules and print what it says
    Check {
        /// The file (YAML)
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct BackupOptions {
    #[command(flatten)]
    pub place: Place,
    /// The file to make
    pub target: PathBuf,
}

#[derive(Debug, Args)]
pub struct RestoreOptions {
    #[command(flatten)]
    pub place: Place,
    /// The backup
    pub from: PathBuf,
    /// Restore the results alone; users, roles and keys stay as they are
    #[arg(long)]
    pub keep_users: bool,
}

#[derive(Debug, Args)]
pub struct ClusterFileOption {
    /// The cluster's file (cluster.yml)
    #[arg(long = "cluster", env = "LAZARET_CLUSTER", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Store files; prints each blob's name
    Put {
        #[command(flatten)]
        cluster: ClusterFileOption,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Read a blob
    Get {
        #[command(flatten)]
        cluster: ClusterFileOption,
        name: String,
        /// Write here instead of to standard output
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Only bytes A to B, both included, counted from 0
        #[arg(long, value_name = "A-B")]
        range: Option<String>,
    },
    /// Show a blob's size, put time and holders as JSON
    Stat {
        #[command(flatten)]
        cluster: ClusterFileOption,
        name: String,
    },
    /// Delete blobs for every submitter; needs the storage admin key
    Rm(BlobNames),
    /// Keep blobs past their retention; needs the storage admin key
    Hold(BlobNames),
    /// End a hold; needs the storage admin key
    Release(BlobNames),
}

#[derive(Debug, Args)]
pub struct BlobNames {
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a new cluster's certificates, keys and configuration files
    Init(InitOptions),
    /// Show every node's state
    Status(ShowOptions),
    /// Show the cluster map
    Map(ShowOptions),
    /// Compare all nodes now and make good what is missing
    Repair {
        #[command(flatten)]
        cluster: ClusterFileOption,
    },
    /// Verify everything on all disks
    Scrub {
        #[command(flatten)]
        cluster: ClusterFileOption,
        /// Now, and not only when its turn comes
        #[arg(long, required = true)]
        now: bool,
    },
    /// Take no more writes on a node and move its blobs to others
    Drain(DrainOptions),
    /// Change the cluster's settings
    Set(SetOptions),
    /// Change a node's share of the data
    Weight {
        #[command(flatten)]
        cluster: ClusterFileOption,
        /// The node's name or id
        node: String,
        /// Its share relative to the others
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(lazaret_protocol::limits::WEIGHT_MAX)))]
        weight: u32,
    },
    /// Add nodes: make their certificates and configurations, and enter them in the map
    Add {
        #[command(flatten)]
        cluster: ClusterFileOption,
        /// ADDR:PORT of a node to be made here, or a file with the map entry (YAML) of one made elsewhere
        #[arg(required = true, value_name = "FILE|ADDR:PORT")]
        nodes: Vec<String>,
        /// Their share of the data relative to other nodes
        #[arg(long, default_value_t = crate::init::DEFAULT_WEIGHT)]
        weight: u32,
    },
    /// Strike a node that is drained and empty from the map
    Remove {
        #[command(flatten)]
        cluster: ClusterFileOption,
        /// The node's name or id
        node: String,
        /// Even if it is not empty, or does not answer
        #[arg(long)]
        force: bool,
    },
    /// Replace a key or certificates while everything runs
    Rotate(RotateOptions),
}

#[derive(Debug, Args)]
pub struct ShowOptions {
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DrainOptions {
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    /// The node's name or id
    pub node: String,
    /// Even if fewer nodes are left than max_replica
    #[arg(long)]
    pub force: bool,
    /// Let it take writes again
    #[arg(long)]
    pub undo: bool,
}

#[derive(Debug, Args)]
#[group(id = "settings", required = true, multiple = true)]
pub struct Settings {
    /// Copies that must be durable before an upload is acknowledged
    #[arg(long, value_name = "N")]
    pub min_replica: Option<u8>,
    /// Copies that a blob should have
    #[arg(long, value_name = "N")]
    pub max_replica: Option<u8>,
    /// Hours after which blobs expire; 0 keeps them for ever
    #[arg(long, value_name = "HOURS")]
    pub cleanuprange: Option<u32>,
    /// How blobs lie on disk from now on
    #[arg(long)]
    pub storage_type: Option<StorageTypeOption>,
}

#[derive(Debug, Args)]
pub struct SetOptions {
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    #[command(flatten)]
    pub settings: Settings,
    /// Change nothing; say what would expire at once
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StorageTypeOption {
    /// Under a random keystream kept beside it
    Salt,
    /// As it came
    None,
}

#[derive(Debug, Args)]
pub struct RotateOptions {
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    /// What to replace
    pub what: Rotated,
    /// Replace the cluster's CA as well (certificates)
    #[arg(long, conflicts_with = "finish")]
    pub new_ca: bool,
    /// Let the former key, or the former CA, be good no longer
    #[arg(long)]
    pub finish: bool,
    /// Finish even if not every node goes by the new one yet
    #[arg(long, requires = "finish")]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rotated {
    /// What clients put and get with
    ConnectionKey,
    /// What administration needs
    AdminKey,
    /// The nodes' certificates
    Certificates,
}

#[derive(Debug, Clone, Args)]
pub struct InitOptions {
    /// Where to; made if it is not there
    pub dir: PathBuf,
    /// How many storage nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// The nodes' addresses, one each; without it 127.0.0.1 and ports from 8890 in steps of 10
    #[arg(long = "node-address", value_name = "ADDR:PORT")]
    pub node_addresses: Vec<SocketAddr>,
    /// The gateway's address
    #[arg(long, default_value = "127.0.0.1:8899")]
    pub gateway_address: SocketAddr,
    /// Copies that must be durable before an upload is acknowledged
    #[arg(long, default_value_t = 2)]
    pub min_replica: u8,
    /// Copies that a blob should have
    #[arg(long, default_value_t = 3)]
    pub max_replica: u8,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Puts and gets of the storage cluster
    Store(BenchStoreOptions),
    /// Files submitted to a gateway at a fixed rate, and their verdicts
    Submit(BenchSubmitOptions),
    /// All of it, as a report in JSON and HTML
    Report(BenchReportOptions),
    /// Archives through the whole station, with nothing known and with every verdict known
    Archive(BenchArchiveOptions),
}

/// The word that asks for a cluster in the process of its own, where one could be named instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Embedded {
    Embedded,
}

#[derive(Debug, Args)]
pub struct BenchArchiveOptions {
    /// Files and folders; without any, or with the word "embedded" alone, archives are generated
    pub paths: Vec<PathBuf>,
    /// A gateway; without it one is started with everything embedded
    #[arg(long, requires = "apikey_file")]
    pub url: Option<String>,
    /// A file that holds the API key
    #[arg(long)]
    pub apikey_file: Option<PathBuf>,
    /// A file (PEM) with an authority to trust besides the system's, for https://
    #[arg(long, value_name = "FILE", requires = "url")]
    pub ca: Option<PathBuf>,
    /// Go on with newly generated archives for so long, after the first ones
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// How long each generated archive is, instead of --members
    #[arg(long, value_name = "BYTES", conflicts_with = "members", value_parser = clap::value_parser!(u64).range(10_000..=6_000_000_000))]
    pub size: Option<u64>,
    /// How many archives are generated
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub archives: u16,
    /// How many members each generated archive has
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub members: u32,
    /// Submit everything a second time, when every verdict is known
    #[arg(long)]
    pub warm: bool,
    /// Threads that extract and scan
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Storage nodes, each blob on one of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Files submitted and awaited at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub judging: JudgingOptions,
}

#[derive(Debug, Args)]
pub struct BenchStoreOptions {
    /// A running cluster; without it three storage nodes are started as processes of their own
    #[command(flatten)]
    pub cluster: ClusterFileOption,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// How long each operation is measured with each size
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Only blobs of so many bytes
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// Requests under way at once [default: fewer the larger the blobs]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub concurrency: Option<u16>,
    /// Copies that make a put, of the nodes that are started
    #[arg(long, default_value_t = 3)]
    pub min_replica: u8,
    /// Copies that a blob should have, of the nodes that are started
    #[arg(long, default_value_t = 3)]
    pub max_replica: u8,
    /// Leave out what the machine allows
    #[arg(long)]
    pub no_limits: bool,
    /// The nodes in this process, reached without a network
    #[arg(value_enum, hide_possible_values = true, conflicts_with = "file")]
    pub embedded: Option<Embedded>,
    /// So many puts of each size, instead of as many as go in --seconds
    #[arg(long)]
    pub puts: Option<usize>,
    /// So many gets after them
    #[arg(long, default_value_t = 0, requires = "puts")]
    pub gets: usize,
}

#[derive(Debug, Args)]
pub struct BenchSubmitOptions {
    /// A gateway; without it one is started with everything embedded, in a process of its own
    #[arg(long, requires = "apikey_file")]
    pub url: Option<String>,
    /// Says that no gateway is given
    #[arg(value_enum, hide_possible_values = true, conflicts_with = "url")]
    pub embedded: Option<Embedded>,
    /// A file that holds the API key
    #[arg(long)]
    pub apikey_file: Option<PathBuf>,
    /// A file (PEM) with an authority to trust besides the system's, for https://
    #[arg(long, value_name = "FILE", requires = "url")]
    pub ca: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// How long files are submitted
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Files a second
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,
    /// The files' mean length
    #[arg(long, value_name = "BYTES", default_value_t = 140_000, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub size: u64,
    /// Submissions under way at once; what is due beyond them waits, and its latency counts
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub concurrency: u16,
    /// Copies that make a put, of the nodes that are started
    #[arg(long, default_value_t = 1)]
    pub min_replica: u8,
    /// Copies that a blob should have; as many nodes are started
    #[arg(long, default_value_t = 1)]
    pub max_replica: u8,
    /// Below which directory its data lies while it runs [default: the temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct BenchReportOptions {
    /// Where report.json and report.html are written
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// How long each part is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

#[derive(Debug, Args)]
pub struct SimulateOptions {
    /// Decides everything that happens: the same seed gives the same run
    #[arg(long)]
    pub seed: u64,
    /// How many seeds, from --seed on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// How often in a run something is asked of the cluster or breaks
    #[arg(long, default_value_t = lazaret_simulation::STEPS_DEFAULT)]
    pub steps: u64,
    /// Break a promise on purpose, to see that it is noticed
    #[arg(long, value_parser = lazaret_simulation::Mutant::ALL.map(lazaret_simulation::Mutant::name))]
    pub mutant: Option<String>,
    /// One JSON document a run, one a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ComponentOptions {
    /// The component's configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print the configuration in force and exit
    #[arg(long)]
    pub print_config: bool,
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
}

#[derive(Debug, Args)]
pub struct StorageNodeOptions {
    #[command(flatten)]
    pub component: ComponentOptions,
    /// Rebuild the index of every disk from its segments and exit; the node must not run
    #[arg(long, conflicts_with_all = ["fsck", "print_config", "check_config"])]
    pub rebuild_index: bool,
    /// Read and check everything on every disk, change nothing, and exit: 0 sound, 1 damaged, 2 not checked; the node must not run
    #[arg(long, conflicts_with_all = ["print_config", "check_config"])]
    pub fsck: bool,
    /// With --fsck: the whole report as JSON
    #[arg(long, requires = "fsck")]
    pub json: bool,
}

/// Help and version are answers; anything else is one line on stderr and exit code 2.
pub fn usage_error(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain("a command is missing (see 'lazaret --help')");
        return ExitCode::from(2);
    }
    let text = error.to_string();
    // clap explains over several lines; the first paragraph says what is wrong.
    let reason = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    complain(format_args!("{} (see 'lazaret --help')", reason.trim_start_matches("error: ")));
    ExitCode::from(2)
}
