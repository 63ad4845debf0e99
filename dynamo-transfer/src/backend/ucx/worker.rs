//! A context and its worker, for one thread: created, used and destroyed there.

#![expect(unsafe_code, reason = "calls of a C library")]

use std::ffi::{CString, c_void};
use std::os::fd::RawFd;
use std::ptr;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;

use super::inbox::{Inbox, on_failed, on_message};
use super::library::Library;
use super::protocol::ADDRESS_BYTES_MAX;
use super::sys::{
    self, ConfigHandle, ContextHandle, EndpointHandle, EndpointParams, FailureHandler,
    MessageHandler, Params, SocketAddress, WorkerHandle, WorkerParams,
};
use crate::error::{Error, ErrorKind, Result};

/// A worker of a context of its own; both end when it is dropped, and its endpoints with it.
pub(super) struct Worker {
    raw: WorkerHandle,
    context: Context,
    /// Outlives the worker, which calls it back.
    inbox: Rc<Inbox>,
    /// What its endpoints do about failures.
    pub(super) on_failure: OnFailure,
}

/// Returns what a failure is before anyone was reached: the same as a connection that is refused.
pub(super) fn before_anyone(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::Disconnected => ErrorKind::Unreachable,
        kind => kind,
    }
}

/// Whether UCX looks for failures of a peer by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// Whoever uses the endpoint learns of them otherwise.
    Nothing,
    Handled,
}

/// A setting of UCX by its name without `UCX_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    name: String,
    value: String,
    /// Without it the agent would not work as it is meant to.
    is_needed: bool,
}

impl Setting {
    pub(super) fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.to_owned(), is_needed: true }
    }

    /// One that a version of UCX may not know.
    pub(super) fn wish(name: &str, value: &str) -> Self {
        Self { is_needed: false, ..Self::new(name, value) }
    }
}

struct Context {
    raw: ContextHandle,
    library: Arc<Library>,
}

impl Worker {
    pub(super) fn new(
        library: &Arc<Library>,
        features: u64,
        settings: &[Setting],
        inbox: &Rc<Inbox>,
    ) -> Result<Self> {
        let context = Context::new(library, features, settings)?;
        let params = WorkerParams {
            field_mask: sys::WORKER_PARAM_THREAD_MODE | sys::WORKER_PARAM_FLAGS,
            thread_mode: sys::THREAD_MODE_SINGLE,
            cpu_mask: [0; 16],
            events: 0,
            user_data: ptr::null_mut(),
            event_fd: -1,
            flags: sys::WORKER_FLAG_IGNORE_REQUEST_LEAK,
            name: ptr::null(),
            am_alignment: 0,
            client_id: 0,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the context is alive, and the struct is of the version it was initialised with.
        let status = unsafe {
            (library.functions().ucp_worker_create)(context.raw, &raw const params, &raw mut raw)
        };
        library.check(status, "ucp_worker_create")?;
        Ok(Self { raw, context, inbox: Rc::clone(inbox), on_failure: OnFailure::Handled })
    }

    pub(super) fn library(&self) -> &Arc<Library> {
        &self.context.library
    }

    /// Has messages of this id go to the inbox.
    pub(super) fn listen(&self, id: u32) -> Result<()> {
        let handler = MessageHandler {
            field_mask: sys::AM_HANDLER_ID
                | sys::AM_HANDLER_FLAGS
                | sys::AM_HANDLER_CALLBACK
                | sys::AM_HANDLER_ARG,
            id,
            flags: sys::AM_FLAG_WHOLE_MSG,
            callback: Some(on_message),
            arg: self.inbox_arg(),
        };
        // SAFETY: the inbox outlives the worker.
        let status = unsafe {
            (self.functions().ucp_worker_set_am_recv_handler)(self.raw, &raw const handler)
        };
        self.library().check(status, "ucp_worker_set_am_recv_handler")
    }

    /// Returns what peers connect to.
    pub(super) fn address(&self) -> Result<Vec<u8>> {
        let (mut address, mut len) = (ptr::null_mut(), 0);
        // SAFETY: writes an address of its own and its length.
        let status = unsafe {
            (self.functions().ucp_worker_get_address)(self.raw, &raw mut address, &raw mut len)
        };
        self.library().check(status, "ucp_worker_get_address")?;
        // SAFETY: UCX returned that many bytes, and they are copied before they are released.
        let bytes = unsafe { slice::from_raw_parts(address.cast::<u8>(), len) }.to_vec();
        // SAFETY: the address is this worker's and released once.
        unsafe { (self.functions().ucp_worker_release_address)(self.raw, address) };
        Ok(bytes)
    }

    /// Returns what becomes readable when there is something to progress, once armed.
    pub(super) fn event_fd(&self) -> Result<RawFd> {
        let mut fd = -1;
        // SAFETY: writes a descriptor that stays the worker's.
        let status = unsafe { (self.functions().ucp_worker_get_efd)(self.raw, &raw mut fd) };
        self.library().check(status, "ucp_worker_get_efd")?;
        Ok(fd)
    }

    /// Moves what can be moved; tells whether there was anything.
    pub(super) fn progress(&self) -> bool {
        // SAFETY: not called from a callback: those only note what has happened.
        unsafe { (self.functions().ucp_worker_progress)(self.raw) != 0 }
    }

    /// Tells whether it is fine to wait for the event descriptor.
    pub(super) fn arm(&self) -> Result<bool> {
        // SAFETY: the worker is alive.
        match unsafe { (self.functions().ucp_worker_arm)(self.raw) } {
            sys::ERR_BUSY => Ok(false),
            status => self.library().check(status, "ucp_worker_arm").map(|()| true),
        }
    }

    /// Makes an endpoint to the worker of this address; its failure goes to the inbox.
    pub(super) fn connect(&self, address: &[u8]) -> Result<EndpointHandle> {
        // Whoever wrote it, reading it does not leave what is allocated here too soon.
        let mut padded = address.to_vec();
        padded.resize(address.len() + ADDRESS_BYTES_MAX, 0);
        let no_address = || SocketAddress { address: ptr::null(), len: 0 };
        let params = EndpointParams {
            field_mask: sys::EP_PARAM_REMOTE_ADDRESS
                | sys::EP_PARAM_ERR_HANDLING_MODE
                | sys::EP_PARAM_ERR_HANDLER,
            address: padded.as_ptr().cast(),
            err_mode: match self.on_failure {
                OnFailure::Nothing => sys::ERR_HANDLING_MODE_NONE,
                OnFailure::Handled => sys::ERR_HANDLING_MODE_PEER,
            },
            err_handler: FailureHandler { callback: Some(on_failed), arg: self.inbox_arg() },
            user_data: ptr::null_mut(),
            flags: 0,
            sockaddr: no_address(),
            conn_request: ptr::null_mut(),
            name: ptr::null(),
            local_sockaddr: no_address(),
        };
        let mut endpoint = ptr::null_mut();
        // SAFETY: the address is one that `address` returned at a peer: metadata has a checksum.
        // The inbox outlives the worker.
        let status = unsafe {
            (self.functions().ucp_ep_create)(self.raw, &raw const params, &raw mut endpoint)
        };
        self.library()
            .check(status, "cannot connect")
            .map_err(|error| Error::new(before_anyone(error.kind()), error.message().to_owned()))?;
        Ok(endpoint)
    }

    pub(super) fn context(&self) -> ContextHandle {
        self.context.raw
    }

    fn functions(&self) -> &sys::Functions {
        self.context.library.functions()
    }

    fn inbox_arg(&self) -> *mut c_void {
        Rc::as_ptr(&self.inbox).cast_mut().cast()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once, on the same thread.
        unsafe { (self.functions().ucp_worker_destroy)(self.raw) };
    }
}

impl Context {
    fn new(library: &Arc<Library>, features: u64, settings: &[Setting]) -> Result<Self> {
        let config = Config::read(library)?;
        for Setting { name, value, is_needed } in settings {
            match config.set(name, value) {
                Err(error) if *is_needed => return Err(error),
                Err(error) => tracing::debug!(%error, "not set"),
                Ok(()) => {}
            }
        }
        let params = Params {
            field_mask: sys::PARAM_FEATURES,
            features: features | sys::FEATURE_WAKEUP,
            request_size: 0,
            request_init: ptr::null_mut(),
            request_cleanup: ptr::null_mut(),
            tag_sender_mask: 0,
            mt_workers_shared: 0,
            estimated_num_eps: 0,
            estimated_num_ppn: 0,
            name: ptr::null(),
        };
        let (major, minor) = sys::API;
        let mut raw = ptr::null_mut();
        // SAFETY: params and config are of the version that is named, and are read only here.
        let status = unsafe {
            (library.functions().ucp_init_version)(
                major,
                minor,
                &raw const params,
                config.raw,
                &raw mut raw,
            )
        };
        library.check(status, "ucp_init").map_err(|error| {
            Error::new(ErrorKind::BackendUnavailable, error.message().to_owned())
        })?;
        Ok(Self { raw, library: Arc::clone(library) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by `new`; its worker was destroyed before.
        unsafe { (self.library.functions().ucp_cleanup)(self.raw) };
    }
}

/// The settings a context starts with: UCX's own, those of the process's `UCX_` variables, ours.
struct Config<'a> {
    raw: ConfigHandle,
    library: &'a Library,
}

impl<'a> Config<'a> {
    fn read(library: &'a Library) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: null stands for the usual prefix and for no file.
        let status = unsafe {
            (library.functions().ucp_config_read)(ptr::null(), ptr::null(), &raw mut raw)
        };
        library.check(status, "ucp_config_read")?;
        Ok(Self { raw, library })
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| {
                Error::new(ErrorKind::InvalidArgument, "a setting of UCX has a zero in it")
            })
        };
        let (key, text) = (text(name)?, text(value)?);
        // SAFETY: both are strings that end with a zero, and are copied.
        let status = unsafe {
            (self.library.functions().ucp_config_modify)(self.raw, key.as_ptr(), text.as_ptr())
        };
        self.library.check(status, "ucp_config_modify").map_err(|error| {
            let message = format!("UCX refuses {name}={value}: {}", error.message());
            Error::new(ErrorKind::InvalidArgument, message)
        })
    }
}

impl Drop for Config<'_> {
    fn drop(&mut self) {
        // SAFETY: read by `read`, released once.
        unsafe { (self.library.functions().ucp_config_release)(self.raw) };
    }
}
