//! A client's socket, plain or behind TLS, read and written without a task of its own.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use rustls::ServerConnection;
use tokio::net::TcpStream;

/// What a connection reads from and writes to; like a [`TcpStream`]: whoever would have to wait is told
/// [`io::ErrorKind::WouldBlock`].
pub struct Socket {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: ServerConnection,
    /// Whether there may be something to read that has come already.
    has_more: bool,
}

/// The stream, as rustls reads and writes.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket { stream, tls: None }
    }
}

impl Socket {
    /// After a TLS handshake.
    pub fn secure(stream: TcpStream, session: ServerConnection) -> Socket {
        let has_more = true;
        Socket {
            stream,
            tls: Some(Box::new(Tls { session, has_more })),
        }
    }

    /// Waits until there may be something to read.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.tls {
            Some(tls) if tls.has_more => Ok(()),
            _ => self.stream.readable().await,
        }
    }

    /// Waits until something may be written.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Reads what is there; nothing at the end.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.stream.try_read(buffer);
        };
        loop {
            match tls.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    tls.has_more = true;
                    return read;
                }
            }
            tls.has_more = false;
            if tls.session.read_tls(&mut Raw(&self.stream))? == 0 {
                return Ok(0); // cut without a farewell
            }
            let processed = tls.session.process_new_packets();
            if let Err(error) = processed {
                // the alert that says why; the client may be gone
                let _ = self.flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    /// Writes as much of these as is taken at once.
    pub fn try_write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.stream.try_write_vectored(bytes);
        };
        // what rustls keeps is bounded: more only when that has gone
        let taken = match tls.session.wants_write() {
            true => 0,
            false => tls.session.writer().write_vectored(bytes)?,
        };
        match self.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(error) => Err(error),
            Ok(()) if taken == 0 => self.try_write_vectored(bytes),
            Ok(()) => Ok(taken),
        }
    }

    /// Whether something was taken and is not written yet.
    pub fn has_unsent(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.session.wants_write())
    }

    /// Writes what was taken.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.session.wants_write() {
                tls.session.write_tls(&mut Raw(&self.stream))?;
            }
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub fn end(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.session.send_close_notify();
            match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                flushed => flushed?,
            }
        }
        socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }
}
