//! Files whose holes take no disk. [I/O]

use std::fs::File;

/// Makes what is never written of an empty file take no disk; file systems outside Windows need no word for it.
#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub fn make(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// Makes what is never written of an empty file take no disk.
#[cfg(windows)]
#[expect(unsafe_code, reason = "Windows offers it only as a control code")]
pub fn make(file: &File) -> std::io::Result<()> {
    use std::os::windows::io::AsRawHandle as _;
    use std::ptr::{null, null_mut};

    use windows_sys::Win32::System::IO::DeviceIoControl;
    use windows_sys::Win32::System::Ioctl::FSCTL_SET_SPARSE;

    let mut returned = 0;
    // SAFETY: the handle is open for the length of the call, which takes no input and gives no output; `returned` outlives it.
    let done = unsafe {
        DeviceIoControl(file.as_raw_handle(), FSCTL_SET_SPARSE, null(), 0, null_mut(), 0, &raw mut returned, null_mut())
    };
    if done == 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
