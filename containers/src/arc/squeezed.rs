//! Squeezed members: a Huffman code whose tree comes before the data, as nodes of two children. Format: Richard Greenlaw's SQ.

use std::io::{self, BufRead};

use crate::fields::invalid;

/// Nodes of a tree of bytes and an end: one less than these.
const NODES_MAX: u16 = 256;
/// What stands for the end.
const END: u16 = 256;

/// Decodes one member.
pub(super) struct Decoder<R> {
    input: io::Bytes<R>,
    /// For each node its children: a node, or, below zero, one less than the negative of what it stands for.
    nodes: Vec<[i16; 2]>,
    held: u8,
    held_bits: u8,
    done: bool,
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut count = [0; 2];
        input.read_exact(&mut count)?;
        let count = u16::from_le_bytes(count);
        if count > NODES_MAX {
            return Err(invalid("a tree of too many nodes"));
        }
        let mut nodes = Vec::new();
        for _ in 0..count {
            let mut children = [0; 4];
            input.read_exact(&mut children)?;
            let [a, b, c, d] = children;
            let children = [i16::from_le_bytes([a, b]), i16::from_le_bytes([c, d])];
            if children.iter().any(|child| !(-i32::from(END) - 1..i32::from(count)).contains(&i32::from(*child))) {
                return Err(invalid("a malformed tree"));
            }
            nodes.push(children);
        }
        // A tree without nodes stands for nothing.
        Ok(Self { input: input.bytes(), done: nodes.is_empty(), nodes, held: 0, held_bits: 0 })
    }

    /// The next byte; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<u8>> {
        if self.done {
            return Ok(None);
        }
        let mut at = 0;
        // No way through a tree is longer than it has nodes, or it leads in a circle.
        for _ in 0..self.nodes.len() {
            if self.held_bits == 0 {
                self.held =
                    self.input.next().transpose()?.ok_or_else(|| invalid("the data ends before its end mark"))?;
                self.held_bits = 8;
            }
            let bit = usize::from(self.held & 1);
            self.held >>= 1;
            self.held_bits -= 1;
            let child = self.nodes.get(at).and_then(|children| children.get(bit)).copied().unwrap_or_default();
            match usize::try_from(child) {
                Ok(node) => at = node,
                Err(_) => {
                    // Checked when it was read: at most the end's number.
                    let stands_for = -(child + 1) as u16;
                    self.done = stands_for == END;
                    return Ok(u8::try_from(stands_for).ok());
                }
            }
        }
        Err(invalid("a tree that leads in a circle"))
    }
}
