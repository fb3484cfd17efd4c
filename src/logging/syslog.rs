//! Log lines for a syslog server: the local one over its socket in the form it has always had (RFC 3164 without a host), others
//! over UDP (RFC 5426) or TCP (RFC 6587, counted octets) in the form of RFC 5424.

use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use tracing::Level;

use super::stream::Write;

/// Where the local server listens.
const LOCAL: &str = "/dev/log";
/// "System daemons".
const FACILITY: u8 = 3;
/// How long a server may take to accept a connection or a line.
const TIME_MAX: Duration = Duration::from_secs(2);
/// How long a server that failed is left alone. Lines are lost meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// Which server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// A socket on this machine.
    Local(PathBuf),
    /// `host:port` over UDP.
    Udp(String),
    /// `host:port` over TCP.
    Tcp(String),
}

impl Server {
    /// The server that a configuration names.
    pub fn named(path: Option<&str>) -> anyhow::Result<Self> {
        let with_port = |host: &str| {
            let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            port.map(|_| host.to_owned()).with_context(|| format!("{host:?} must be host:port"))
        };
        match path {
            None | Some("local") => Ok(Self::Local(LOCAL.into())),
            Some(path) if path.starts_with('/') => Ok(Self::Local(path.into())),
            Some(path) => match path.split_once("://") {
                Some(("udp", host)) => Ok(Self::Udp(with_port(host)?)),
                Some(("tcp", host)) => Ok(Self::Tcp(with_port(host)?)),
                _ => bail!("{path:?} is no syslog server: local, /path/of/socket, udp://host:port or tcp://host:port"),
            },
        }
    }
}

enum Connection {
    Local(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// A syslog server, connected to when there is a line for it.
pub struct Syslog {
    server: Server,
    connection: Option<Connection>,
    failed: Option<Instant>,
    host: String,
}

impl Syslog {
    /// Not connected yet: a server that is not there must not keep a component from starting.
    pub fn new(server: Server) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self { server, connection: None, failed: None, host: if host.is_empty() { "-".to_owned() } else { host } }
    }

    fn connect(&self) -> io::Result<Connection> {
        Ok(match &self.server {
            Server::Local(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(TIME_MAX))?;
                socket.connect(path)?;
                Connection::Local(socket)
            }
            Server::Udp(host) => {
                let address = resolve(host)?;
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                Connection::Udp(socket)
            }
            Server::Tcp(host) => {
                let stream = TcpStream::connect_timeout(&resolve(host)?, TIME_MAX)?;
                stream.set_write_timeout(Some(TIME_MAX))?;
                Connection::Tcp(stream)
            }
        })
    }

    fn send(&mut self, level: Level, line: &str) -> io::Result<()> {
        let priority = FACILITY * 8 + severity(level);
        let now = OffsetDateTime::now_utc();
        let process = std::process::id();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let made = self.connect()?;
                self.connection.insert(made)
            }
        };
        let remote = || {
            let time = now.format(&Rfc3339).unwrap_or_else(|_| "-".to_owned());
            format!("<{priority}>1 {time} {} lazaret {process} - - {line}", self.host)
        };
        match connection {
            Connection::Local(socket) => {
                let form = format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second]");
                let time = now.format(form).unwrap_or_default();
                socket.send(format!("<{priority}>{time} lazaret[{process}]: {line}").as_bytes()).map(drop)
            }
            Connection::Udp(socket) => socket.send(remote().as_bytes()).map(drop),
            Connection::Tcp(stream) => {
                let message = remote();
                stream.write_all(format!("{} {message}", message.len()).as_bytes())
            }
        }
    }
}

fn resolve(host: &str) -> io::Result<std::net::SocketAddr> {
    host.to_socket_addrs()?.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

/// The numbers of RFC 5424.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl Write for Syslog {
    fn name(&self) -> String {
        match &self.server {
            Server::Local(path) => format!("syslog at {}", path.display()),
            Server::Udp(host) | Server::Tcp(host) => format!("syslog at {host}"),
        }
    }

    fn line(&mut self, level: Level, line: &[u8]) -> io::Result<()> {
        if self.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(io::Error::other("the server failed a moment ago"));
        }
        let line = String::from_utf8_lossy(line);
        // A server that was restarted is worth a second try at once.
        let sent = match self.connection.is_some() {
            true => self.send(level, &line).or_else(|_| {
                self.connection = None;
                self.send(level, &line)
            }),
            false => self.send(level, &line),
        };
        self.failed = sent.as_ref().err().map(|_| Instant::now());
        if sent.is_err() {
            self.connection = None;
        }
        sent
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn each_kind_of_server_gets_lines_in_the_form_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let local = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 1024];
        let mut syslog = Syslog::new(Server::named(path.to_str()).unwrap());
        syslog.line(Level::WARN, b"something").unwrap();
        let length = local.recv(&mut buffer).unwrap();
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(
            line.starts_with("<28>") && line.ends_with(&format!(" lazaret[{}]: something", std::process::id())),
            "{line}"
        );

        // A server that is started anew is found again.
        drop(local);
        std::fs::remove_file(&path).unwrap();
        let local = UnixDatagram::bind(&path).unwrap();
        syslog.line(Level::ERROR, b"again").unwrap();
        let length = local.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"<27>") && buffer[..length].ends_with(b": again"));

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new(Server::named(Some(&format!("udp://{}", udp.local_addr().unwrap()))).unwrap());
        syslog.line(Level::INFO, b"over UDP").unwrap();
        let length = udp.recv(&mut buffer).unwrap();
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(line.starts_with("<30>1 20") && line.ends_with(" - - over UDP"), "{line}");

        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new(Server::named(Some(&format!("tcp://{}", tcp.local_addr().unwrap()))).unwrap());
        syslog.line(Level::INFO, b"over TCP").unwrap();
        syslog.line(Level::DEBUG, b"and more").unwrap();
        drop(syslog);
        let mut text = String::new();
        tcp.accept().unwrap().0.read_to_string(&mut text).unwrap();
        let (length, rest) = text.split_once(' ').unwrap();
        let (first, second) = rest.split_at(length.parse().unwrap());
        assert!(first.starts_with("<30>1 ") && first.ends_with("over TCP"), "{text}");
        assert!(second.contains(" <31>1 ") && second.ends_with("and more"), "{text}");
    }

    #[test]
    fn a_server_that_is_not_there_is_left_alone_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let mut syslog = Syslog::new(Server::Local(dir.path().join("nobody")));
        assert!(syslog.line(Level::INFO, b"lost").is_err());
        let error = syslog.line(Level::INFO, b"lost as well").unwrap_err();
        assert!(error.to_string().contains("a moment ago"), "{error}");
    }
}
