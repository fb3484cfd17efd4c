//! What a process gives up before it touches hostile bytes.
//!
//! Landlock takes away every path, TCP port, abstract socket and signal to others; seccomp takes away every system call that
//! is not on a list; resource limits bound what is left. Either of the first two alone stops a process that tries to open a
//! file: one of them having a gap opens nothing.

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix_sandbox as rustix;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilityFlags, CapabilitySets, set_capabilities};

/// System calls of a process that works on bytes in memory: reading, writing and measuring what it has, memory, time and
/// randomness, ending. None takes a path, an address or another process, but for signals to itself, with which it aborts.
const JOB_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What a zygote and its templates need besides: to take jobs, to fork, to wait, and to confine a job process further.
const TEMPLATE_CALLS: &[i64] = &[
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_wait4,
    libc::SYS_prlimit64,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_getppid,
    libc::SYS_dup3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
];

/// The filters, compiled before there is anything to fear.
pub(crate) struct Filters {
    template: BpfProgram,
    job: BpfProgram,
}

impl Filters {
    pub fn compile() -> Result<Self, String> {
        Ok(Self { template: template_filter()?, job: job_filter()? })
    }

    /// Confines a zygote, and with it every process that comes of it.
    pub fn confine_template(&self) -> Result<(), String> {
        let words = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        // Nobody may read this process, whatever user it runs as, and it leaves no image behind.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .map_err(|error| words("it can't be protected from inspection")(error.into()))?;
        limit(Resource::Core, 0).map_err(words("the limit on core files"))?;
        limit(Resource::Nofile, 16).map_err(words("the limit on open files"))?;
        let none = CapabilitySets {
            effective: CapabilityFlags::empty(),
            permitted: CapabilityFlags::empty(),
            inheritable: CapabilityFlags::empty(),
        };
        set_capabilities(None, none).map_err(|error| words("dropping capabilities")(error.into()))?;
        landlock()?;
        seccompiler::apply_filter(&self.template).map_err(|error| format!("seccomp: {error}"))
    }

    /// Confines a job process further: no more forks, no more descriptors. What memory it was forked with counts.
    pub fn confine_job(&self, cpu_seconds: u64, memory_bytes: u64, output_bytes: u64) -> Result<(), String> {
        let limits = [
            (Resource::Data, memory_bytes),
            (Resource::Cpu, cpu_seconds),
            (Resource::Fsize, output_bytes),
            (Resource::Nproc, 0),
        ];
        for (resource, most) in limits {
            limit(resource, most).map_err(|error| format!("the limit on {resource:?}: {error}"))?;
        }
        seccompiler::apply_filter(&self.job).map_err(|error| format!("seccomp: {error}"))
    }
}

/// How much memory this process has of its own, as the limit on it counts. Asked before the process loses the right to look.
pub(crate) fn data_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let said = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kib: Option<u64> = said.and_then(|said| said.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kib.ok_or(io::ErrorKind::InvalidData)?.saturating_mul(1024))
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Takes away every right that Landlock knows. File system rights are required; those that came later are taken away where
/// the kernel knows them, since seccomp takes away the calls that they are about.
fn landlock() -> Result<(), String> {
    let words = |error: landlock::RulesetError| format!("Landlock: {error}");
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map_err(words)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .map_err(words)?
        .handle_access(AccessNet::from_all(ABI::V4))
        .map_err(words)?
        .scope(Scope::from_all(ABI::V6))
        .map_err(words)?
        .create()
        .map_err(words)?
        .restrict_self()
        .map_err(words)?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err("Landlock: the kernel does not enforce it".to_owned());
    }
    Ok(())
}

/// What a zygote, its templates and their job processes may do.
fn template_filter() -> Result<BpfProgram, String> {
    let words = |error: seccompiler::BackendError| format!("seccomp: {error}");
    let flags_clear = |argument: u8, flags: i32| {
        let condition =
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flags as u64), 0)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let mut rules: Rules = JOB_CALLS.iter().chain(TEMPLATE_CALLS).map(|call| (*call, Vec::new())).collect();
    // Memory that can't be executed.
    rules.insert(libc::SYS_mmap, flags_clear(2, libc::PROT_EXEC).map_err(words)?);
    rules.insert(libc::SYS_mprotect, flags_clear(2, libc::PROT_EXEC).map_err(words)?);
    // Rust asks whether a descriptor is open before it closes it, in builds that check themselves; the input is asked
    // whether it can change.
    let mut asks = Vec::new();
    for question in [libc::F_GETFD, libc::F_GET_SEALS] {
        let asked = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, question as u64);
        asks.push(asked.and_then(|asked| SeccompRule::new(vec![asked])).map_err(words)?);
    }
    rules.insert(libc::SYS_fcntl, asks);
    // Processes, but no threads.
    rules.insert(libc::SYS_clone, flags_clear(0, libc::CLONE_VM).map_err(words)?);
    compiled(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// What of that a job process may not. Both filters are asked, and the stricter one counts: a list of what it may would be four times
/// as long, for the kernel to translate for each job and to go through for each call.
fn job_filter() -> Result<BpfProgram, String> {
    let rules = TEMPLATE_CALLS.iter().chain(&[libc::SYS_clone]).map(|call| (*call, Vec::new())).collect();
    compiled(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

type Rules = std::collections::BTreeMap<i64, Vec<SeccompRule>>;

fn compiled(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, String> {
    let words = |error: seccompiler::BackendError| format!("seccomp: {error}");
    let architecture = std::env::consts::ARCH.try_into().map_err(words)?;
    SeccompFilter::new(rules, otherwise, listed, architecture).and_then(TryInto::try_into).map_err(words)
}
