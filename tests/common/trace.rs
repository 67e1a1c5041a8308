//! The lines that the server writes on top of a message.

/// What stands behind the trace lines of a stored message; `None` where they are not all there. A file in several
/// mailboxes tells nobody whom it was delivered to.
pub fn behind_trace(message: &[u8]) -> Option<&[u8]> {
    let mut octets = 0;
    let mut lines = message.split_inclusive(|&octet| octet == b'\n').peekable();
    for (name, most) in [("Return-Path: <", 1), ("Delivered-To: ", usize::MAX), ("Received: from ", 1), ("\t", 3)] {
        let mut count = 0;
        while let Some(line) = lines.next_if(|line| count < most && line.starts_with(name.as_bytes())) {
            (octets, count) = (octets + line.len(), count + 1);
        }
        if count == 0 && most != usize::MAX {
            return None;
        }
    }
    Some(&message[octets..])
}
