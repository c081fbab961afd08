//! A program's terminal: the pseudo-terminal pair, its size and its modes.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{self, Errno},
    process::Pid,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{
        ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize,
        tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize,
    },
};

/// A terminal's size. Zero columns or rows: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Characters.
    pub columns: u16,
    /// Characters.
    pub rows: u16,
    /// Pixels; 0 = not known.
    pub width: u16,
    /// Pixels; 0 = not known.
    pub height: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Self {
        Self { ws_row: size.rows, ws_col: size.columns, ws_xpixel: size.width, ws_ypixel: size.height }
    }
}

/// One terminal mode: an opcode of RFC 4254 section 8 (or RFC 8160's `IUTF8`) and its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// 1 to 159. Those that this system does not have are passed over, as the RFC wants it.
    pub opcode: u8,
    /// A character code (255: none), a truth value, or a speed in bits per second.
    pub value: u32,
}

/// What a terminal shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `TERM`; empty = leave the environment as it is.
    pub term: String,
    /// Set before the program starts.
    pub size: Size,
    /// Applied in order, before the program starts, on top of the kernel's defaults.
    pub modes: Vec<Mode>,
}

/// Our end of a program's terminal. Reading gives `EIO` once nobody has the other end open any more: that is its end of file.
#[derive(Debug)]
pub struct Master(OwnedFd);

impl Master {
    /// A new terminal of the given size and modes: our end and the program's.
    ///
    /// # Errors
    /// The system's: no `/dev/ptmx`, no free pseudo-terminal, no descriptors.
    pub fn open(request: &Request) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        // By the master and not by name: a container's /dev/pts need not be the one that the master came from.
        let peer = ioctl_tiocgptpeer(&master, flags)?;
        tcsetwinsize(&peer, request.size.into())?;
        if !request.modes.is_empty() {
            let mut termios = tcgetattr(&peer)?;
            for mode in &request.modes {
                apply(&mut termios, *mode);
            }
            tcsetattr(&peer, OptionalActions::Now, &termios)?;
        }
        Ok((Self(master), peer))
    }

    /// Gives the terminal a new size; the kernel sends `SIGWINCH` to its foreground process group if that is a change.
    ///
    /// # Errors
    /// The system's.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        tcsetwinsize(&self.0, size.into())
    }

    /// The terminal's foreground process group; `None` when no session has it (any more).
    ///
    /// # Errors
    /// The system's.
    pub fn foreground(&self) -> io::Result<Option<Pid>> {
        match tcgetpgrp(&self.0) {
            Ok(group) => Ok(Some(group)),
            // rustix's word for the kernel's answer 0.
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Master {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Master> for OwnedFd {
    fn from(master: Master) -> Self {
        master.0
    }
}

/// Applies one mode; an unknown one changes nothing.
fn apply(termios: &mut Termios, Mode { opcode, value }: Mode) {
    if let Some(index) = special_code(opcode) {
        // 255 stands for "no such character" in SSH; Linux's _POSIX_VDISABLE is 0.
        termios.special_codes[index] = u8::try_from(value).ok().filter(|&code| code != 255).unwrap_or(0);
        return;
    }
    let on = value != 0;
    let i = &mut termios.input_modes;
    let l = &mut termios.local_modes;
    let o = &mut termios.output_modes;
    let c = &mut termios.control_modes;
    match opcode {
        30 => i.set(InputModes::IGNPAR, on),
        31 => i.set(InputModes::PARMRK, on),
        32 => i.set(InputModes::INPCK, on),
        33 => i.set(InputModes::ISTRIP, on),
        34 => i.set(InputModes::INLCR, on),
        35 => i.set(InputModes::IGNCR, on),
        36 => i.set(InputModes::ICRNL, on),
        37 => i.set(InputModes::IUCLC, on),
        38 => i.set(InputModes::IXON, on),
        39 => i.set(InputModes::IXANY, on),
        40 => i.set(InputModes::IXOFF, on),
        41 => i.set(InputModes::IMAXBEL, on),
        42 => i.set(InputModes::IUTF8, on),
        50 => l.set(LocalModes::ISIG, on),
        51 => l.set(LocalModes::ICANON, on),
        52 => l.set(LocalModes::XCASE, on),
        53 => l.set(LocalModes::ECHO, on),
        54 => l.set(LocalModes::ECHOE, on),
        55 => l.set(LocalModes::ECHOK, on),
        56 => l.set(LocalModes::ECHONL, on),
        57 => l.set(LocalModes::NOFLSH, on),
        58 => l.set(LocalModes::TOSTOP, on),
        59 => l.set(LocalModes::IEXTEN, on),
        60 => l.set(LocalModes::ECHOCTL, on),
        61 => l.set(LocalModes::ECHOKE, on),
        62 => l.set(LocalModes::PENDIN, on),
        70 => o.set(OutputModes::OPOST, on),
        71 => o.set(OutputModes::OLCUC, on),
        72 => o.set(OutputModes::ONLCR, on),
        73 => o.set(OutputModes::OCRNL, on),
        74 => o.set(OutputModes::ONOCR, on),
        75 => o.set(OutputModes::ONLRET, on),
        // A size is chosen, never taken away: what would be left has no meaning.
        90 if on => set_character_size(c, ControlModes::CS7),
        91 if on => set_character_size(c, ControlModes::CS8),
        92 => c.set(ControlModes::PARENB, on),
        93 => c.set(ControlModes::PARODD, on),
        // A pseudo-terminal has no speed, but programs read it (stty, some editors' redraw rules). Unset is not a hang-up.
        128 if on => drop(termios.set_input_speed(value)),
        129 if on => drop(termios.set_output_speed(value)),
        _ => {}
    }
}

fn set_character_size(modes: &mut ControlModes, size: ControlModes) {
    modes.remove(ControlModes::CSIZE);
    modes.insert(size);
}

/// Opcodes 1 to 18. 11 (VDSUSP), 15 (VFLUSH) and 17 (VSTATUS) are other systems'.
fn special_code(opcode: u8) -> Option<SpecialCodeIndex> {
    Some(match opcode {
        1 => SpecialCodeIndex::VINTR,
        2 => SpecialCodeIndex::VQUIT,
        3 => SpecialCodeIndex::VERASE,
        4 => SpecialCodeIndex::VKILL,
        5 => SpecialCodeIndex::VEOF,
        6 => SpecialCodeIndex::VEOL,
        7 => SpecialCodeIndex::VEOL2,
        8 => SpecialCodeIndex::VSTART,
        9 => SpecialCodeIndex::VSTOP,
        10 => SpecialCodeIndex::VSUSP,
        12 => SpecialCodeIndex::VREPRINT,
        13 => SpecialCodeIndex::VWERASE,
        14 => SpecialCodeIndex::VLNEXT,
        16 => SpecialCodeIndex::VSWTC,
        18 => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::tcgetwinsize;

    fn open(modes: &[(u8, u32)]) -> (Master, OwnedFd) {
        let modes = modes.iter().map(|&(opcode, value)| Mode { opcode, value }).collect();
        let size = Size { columns: 101, rows: 37, width: 808, height: 592 };
        Master::open(&Request { term: "xterm".into(), size, modes }).expect("a terminal")
    }

    #[test]
    fn the_size_and_the_modes_are_there_from_the_start() {
        let (_master, peer) = open(&[(1, 7), (3, 255), (38, 0), (42, 1), (53, 0), (72, 0), (91, 1), (90, 0)]);
        let size = tcgetwinsize(&peer).expect("a size");
        assert_eq!((size.ws_col, size.ws_row, size.ws_xpixel, size.ws_ypixel), (101, 37, 808, 592));
        let got = tcgetattr(&peer).expect("modes");
        assert_eq!(got.special_codes[SpecialCodeIndex::VINTR], 7);
        assert_eq!(got.special_codes[SpecialCodeIndex::VERASE], 0);
        assert!(!got.input_modes.contains(InputModes::IXON));
        assert!(got.input_modes.contains(InputModes::IUTF8));
        assert!(!got.local_modes.contains(LocalModes::ECHO));
        assert!(!got.output_modes.contains(OutputModes::ONLCR));
        assert_eq!(got.control_modes & ControlModes::CSIZE, ControlModes::CS8);
        // Not named, so as the kernel has it.
        assert!(got.local_modes.contains(LocalModes::ICANON));
    }

    #[test]
    fn every_opcode_and_any_value_is_survived() {
        for value in [0, 1, 255, 256, u32::MAX] {
            let modes: Vec<_> = (0..=255).map(|opcode| (opcode, value)).collect();
            drop(open(&modes));
        }
    }

    #[test]
    fn a_resize_is_seen_at_the_other_end() {
        let (master, peer) = open(&[]);
        master.resize(Size { columns: 5, rows: 4, width: 0, height: 0 }).expect("resized");
        let size = tcgetwinsize(&peer).expect("a size");
        assert_eq!((size.ws_col, size.ws_row), (5, 4));
        assert_eq!(master.foreground(), Ok(None));
    }
}
