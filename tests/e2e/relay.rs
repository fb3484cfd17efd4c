//! A slow network: passes datagrams on to a node after a delay, both ways. Kernels have a queue discipline for that, but not
//! every kernel has it built in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Datagrams under way in one direction; more are lost, as on a real network.
const QUEUE_MAX: usize = 16 * 1024;
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Passes on what comes to `listening` to `node`, and its answers back, each way after half of `delay`.
pub fn start(listening: UdpSocket, node: SocketAddr, delay: Duration) {
    tokio::spawn(async move {
        let listening = Arc::new(listening);
        let mut callers: HashMap<SocketAddr, mpsc::Sender<(Instant, Vec<u8>)>> = HashMap::new();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok((length, from)) = listening.recv_from(&mut buffer).await else { continue };
            if let Entry::Vacant(caller) = callers.entry(from) {
                let upstream = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                upstream.connect(node).await.unwrap();
                let (sender, receiver) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(forward(receiver, Arc::clone(&upstream), None));
                let (back, receiver) = mpsc::channel(QUEUE_MAX);
                tokio::spawn(forward(receiver, Arc::clone(&listening), Some(from)));
                tokio::spawn(answers(upstream, back, delay / 2));
                caller.insert(sender);
            }
            let _ = callers[&from].try_send((Instant::now() + delay / 2, buffer[..length].to_vec()));
        }
    });
}

async fn answers(upstream: Arc<UdpSocket>, back: mpsc::Sender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error means that the node does not listen just now.
        if let Ok(length) = upstream.recv(&mut buffer).await {
            let _ = back.try_send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    }
}

async fn forward(mut queue: mpsc::Receiver<(Instant, Vec<u8>)>, socket: Arc<UdpSocket>, to: Option<SocketAddr>) {
    while let Some((due, datagram)) = queue.recv().await {
        tokio::time::sleep_until(due).await;
        let _ = match to {
            Some(to) => socket.send_to(&datagram, to).await,
            None => socket.send(&datagram).await,
        };
    }
}
