//! The program in the sandbox for the tests. A file that begins with a marker makes it try what a subverted reader would.

#![allow(unsafe_code, reason = "it plays a process that has been subverted")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use lazaret_sandbox::Extraction;
use lazaret_sandbox::child::{Output, Work, run_if_asked};

#[derive(Default)]
struct Subverted(Extraction);

impl Work for Subverted {
    fn prepare(&mut self, databases: &[&[u8]]) -> Result<(), String> {
        self.0.prepare(databases)
    }

    fn work(&mut self, input: &File, output: Output) -> io::Result<()> {
        let mut head = [0; 64];
        let read = input.read_at(&mut head, 0)?;
        let text = String::from_utf8_lossy(&head[..read]).into_owned();
        if let Some(deed) = text.strip_prefix("SUBVERT ") {
            misbehave(deed.trim_end_matches(['\n', '\0']), &output);
        }
        self.0.work(input, output)
    }
}

/// Each deed ends the process, or is told of by what it leaves in the last words.
fn misbehave(deed: &str, output: &Output) {
    match deed {
        "open" => drop(File::open("/etc/hostname")),
        "create" => drop(File::create("/tmp/lazaret-sandbox-was-here")),
        "socket" => drop(std::net::TcpStream::connect("127.0.0.1:9")),
        "unix" => drop(std::os::unix::net::UnixStream::connect("/run/dbus/system_bus_socket")),
        "exec" => drop(std::process::Command::new("/bin/true").spawn()),
        // Its template may fork, and limit what it forks.
        // SAFETY: the copy, if there is one, ends at once.
        "fork" => unsafe {
            if libc::fork() == 0 {
                libc::_exit(0);
            }
        },
        "limit" => {
            let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: a plain system call.
            unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const none) };
        }
        "thread" => drop(std::thread::Builder::new().spawn(|| ())),
        "signal" => {
            // The template, which lies outside of the job.
            // SAFETY: plain system calls.
            unsafe { libc::kill(libc::getppid(), libc::SIGKILL) };
        }
        "executable" => {
            // SAFETY: a new mapping, which nothing uses.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
        }
        "look" => look_around(),
        "loop" => loop {
            std::hint::spin_loop();
        },
        "memory" => {
            let mut held = Vec::new();
            loop {
                held.push(vec![1u8; 16 << 20]);
            }
        }
        "stack" => drop(recurse(1)),
        "crash" => {
            // SAFETY: none; that is the point.
            unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
        }
        "panic" => panic!("a subverted reader"),
        "leave" => std::process::exit(7),
        "grow" => {
            let _ = output.memory().write_all_at(b"more", 1 << 30);
            std::process::abort();
        }
        "babble" => {
            output.tell_raw(b"\xff\xff\xff\xff").unwrap();
            loop {
                std::thread::yield_now();
            }
        }
        _ => {}
    }
}

#[allow(unconditional_recursion, reason = "it is to overflow its stack")]
fn recurse(depth: u64) -> u64 {
    let ballast = std::hint::black_box([depth; 512]);
    recurse(depth + 1) + ballast[(depth % 512) as usize]
}

/// Says what it sees of its surroundings: environment, arguments, descriptors that are open.
fn look_around() {
    let environment = std::env::vars_os().count();
    // SAFETY: asking about a descriptor changes nothing. What answers with anything but "no such descriptor" is open.
    let open = (0..1024).filter(|fd| unsafe { libc::lseek(*fd, 0, libc::SEEK_CUR) } >= 0 || errno() != libc::EBADF);
    let open: Vec<i32> = open.collect();
    eprint!("environment {environment} descriptors {}", open.len());
    io::stderr().flush().unwrap();
    std::process::abort();
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn main() -> ExitCode {
    run_if_asked(&mut Subverted::default()).unwrap_or(ExitCode::FAILURE)
}
