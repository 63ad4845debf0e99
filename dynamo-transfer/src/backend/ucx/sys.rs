//! The part of the C interface of UCP 1.13 that is used, written by hand.
//!
//! Every parameter struct starts with a mask of the fields that are set, and later versions only
//! append fields: a table of 1.13 works with all that follow. The layout test holds what
//! `offsetof` and `sizeof` say of Debian's `libucx-dev` 1.13.1 and of the headers in the PyPI wheel
//! `libucx-cu12` 1.22.0 (prefixes of the latter's longer structs) on x86-64.

#![expect(unsafe_code, reason = "filling a table of C functions")]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `ucs_status_t`: an enum packed into one byte.
pub(super) type Status = i8;
/// `ucs_status_ptr_t`: null, a negative status, or a request.
pub(super) type StatusPtr = *mut c_void;

pub(super) type ContextHandle = *mut c_void;
pub(super) type WorkerHandle = *mut c_void;
pub(super) type EndpointHandle = *mut c_void;
pub(super) type ConfigHandle = *mut c_void;
pub(super) type MemoryHandle = *mut c_void;
pub(super) type RemoteKeyHandle = *mut c_void;

pub(super) const OK: Status = 0;
pub(super) const IN_PROGRESS: Status = 1;
pub(super) const ERR_IO_ERROR: Status = -3;
pub(super) const ERR_NO_MEMORY: Status = -4;
pub(super) const ERR_UNREACHABLE: Status = -6;
pub(super) const ERR_BUSY: Status = -15;
pub(super) const ERR_CANCELED: Status = -16;
pub(super) const ERR_TIMED_OUT: Status = -20;
pub(super) const ERR_REJECTED: Status = -23;
pub(super) const ERR_NOT_CONNECTED: Status = -24;
pub(super) const ERR_CONNECTION_RESET: Status = -25;
/// From here down to the next: failures of links and of endpoints.
pub(super) const ERR_LINK_FIRST: Status = -40;
pub(super) const ERR_ENDPOINT_LAST: Status = -89;
const ERR_LAST: isize = -100;

/// Version of the interface that the structs are of.
pub(super) const API: (c_uint, c_uint) = (1, 13);

pub(super) const PARAM_FEATURES: u64 = 1 << 0;
pub(super) const FEATURE_RMA: u64 = 1 << 1;
pub(super) const FEATURE_WAKEUP: u64 = 1 << 4;
pub(super) const FEATURE_AM: u64 = 1 << 6;

#[repr(C)]
pub(super) struct Params {
    pub(super) field_mask: u64,
    pub(super) features: u64,
    pub(super) request_size: usize,
    pub(super) request_init: *mut c_void,
    pub(super) request_cleanup: *mut c_void,
    pub(super) tag_sender_mask: u64,
    pub(super) mt_workers_shared: c_int,
    pub(super) estimated_num_eps: usize,
    pub(super) estimated_num_ppn: usize,
    pub(super) name: *const c_char,
}

pub(super) const WORKER_PARAM_THREAD_MODE: u64 = 1 << 0;
pub(super) const WORKER_PARAM_FLAGS: u64 = 1 << 5;
/// Requests that a peer never lets complete are dropped without a word when the worker goes.
pub(super) const WORKER_FLAG_IGNORE_REQUEST_LEAK: u64 = 1 << 0;
pub(super) const THREAD_MODE_SINGLE: c_uint = 0;

#[repr(C)]
pub(super) struct WorkerParams {
    pub(super) field_mask: u64,
    pub(super) thread_mode: c_uint,
    pub(super) cpu_mask: [u64; 16],
    pub(super) events: c_uint,
    pub(super) user_data: *mut c_void,
    pub(super) event_fd: c_int,
    pub(super) flags: u64,
    pub(super) name: *const c_char,
    pub(super) am_alignment: usize,
    pub(super) client_id: u64,
}

pub(super) const EP_PARAM_REMOTE_ADDRESS: u64 = 1 << 0;
pub(super) const EP_PARAM_ERR_HANDLING_MODE: u64 = 1 << 1;
pub(super) const EP_PARAM_ERR_HANDLER: u64 = 1 << 2;
pub(super) const ERR_HANDLING_MODE_NONE: c_uint = 0;
pub(super) const ERR_HANDLING_MODE_PEER: c_uint = 1;

pub(super) type FailureCallback = unsafe extern "C" fn(*mut c_void, EndpointHandle, Status);

#[repr(C)]
pub(super) struct FailureHandler {
    pub(super) callback: Option<FailureCallback>,
    pub(super) arg: *mut c_void,
}

#[repr(C)]
pub(super) struct SocketAddress {
    pub(super) address: *const c_void,
    pub(super) len: u32,
}

#[repr(C)]
pub(super) struct EndpointParams {
    pub(super) field_mask: u64,
    pub(super) address: *const c_void,
    pub(super) err_mode: c_uint,
    pub(super) err_handler: FailureHandler,
    pub(super) user_data: *mut c_void,
    pub(super) flags: c_uint,
    pub(super) sockaddr: SocketAddress,
    pub(super) conn_request: *mut c_void,
    pub(super) name: *const c_char,
    pub(super) local_sockaddr: SocketAddress,
}

pub(super) const MEM_MAP_PARAM_ADDRESS: u64 = 1 << 0;
pub(super) const MEM_MAP_PARAM_LENGTH: u64 = 1 << 1;

#[repr(C)]
pub(super) struct MemMapParams {
    pub(super) field_mask: u64,
    pub(super) address: *mut c_void,
    pub(super) length: usize,
    pub(super) flags: c_uint,
    pub(super) prot: c_uint,
    pub(super) memory_type: c_uint,
}

pub(super) const OP_CALLBACK: u32 = 1 << 1;
pub(super) const OP_USER_DATA: u32 = 1 << 2;
pub(super) const OP_DATATYPE: u32 = 1 << 3;
pub(super) const OP_FLAGS: u32 = 1 << 4;
pub(super) const AM_SEND_FLAG_EAGER: u32 = 1 << 1;
pub(super) const EP_CLOSE_FLAG_FORCE: u32 = 1 << 0;
pub(super) const DATATYPE_BYTES: u64 = 1 << 3;

pub(super) type SendCallback = unsafe extern "C" fn(*mut c_void, Status, *mut c_void);

#[repr(C)]
pub(super) struct RequestParam {
    pub(super) op_attr_mask: u32,
    pub(super) flags: u32,
    pub(super) request: *mut c_void,
    pub(super) callback: Option<SendCallback>,
    pub(super) datatype: u64,
    pub(super) user_data: *mut c_void,
    pub(super) reply_buffer: *mut c_void,
    pub(super) memory_type: c_uint,
    pub(super) recv_info: *mut c_void,
    pub(super) memory: MemoryHandle,
}

pub(super) const AM_HANDLER_ID: u64 = 1 << 0;
pub(super) const AM_HANDLER_FLAGS: u64 = 1 << 1;
pub(super) const AM_HANDLER_CALLBACK: u64 = 1 << 2;
pub(super) const AM_HANDLER_ARG: u64 = 1 << 3;
pub(super) const AM_FLAG_WHOLE_MSG: u32 = 1 << 0;
pub(super) const AM_RECV_FLAG_RNDV: u64 = 1 << 17;

pub(super) type MessageCallback = unsafe extern "C" fn(
    *mut c_void,
    *const c_void,
    usize,
    *mut c_void,
    usize,
    *const MessageParam,
) -> Status;

#[repr(C)]
pub(super) struct MessageHandler {
    pub(super) field_mask: u64,
    pub(super) id: c_uint,
    pub(super) flags: u32,
    pub(super) callback: Option<MessageCallback>,
    pub(super) arg: *mut c_void,
}

#[repr(C)]
pub(super) struct MessageParam {
    pub(super) recv_attr: u64,
    pub(super) reply_ep: EndpointHandle,
}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Functions {
            /// Fills the table with what `find` returns for each name.
            ///
            /// # Safety
            /// `find` returns the addresses of the functions of libucp and libucs of those names,
            /// and they stay loaded for as long as the table is used.
            pub(super) unsafe fn load<E>(
                find: impl Fn(&str) -> Result<*mut c_void, E>,
            ) -> Result<Self, E> {
                Ok(Self {
                    $($name: {
                        let address = find(stringify!($name))?;
                        // SAFETY: the caller vouches for it being the function of this type.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    ucp_get_version(*mut c_uint, *mut c_uint, *mut c_uint);
    ucs_status_string(Status) -> *const c_char;
    ucp_config_read(*const c_char, *const c_char, *mut ConfigHandle) -> Status;
    ucp_config_modify(ConfigHandle, *const c_char, *const c_char) -> Status;
    ucp_config_release(ConfigHandle);
    ucp_init_version(c_uint, c_uint, *const Params, ConfigHandle, *mut ContextHandle) -> Status;
    ucp_cleanup(ContextHandle);
    ucp_worker_create(ContextHandle, *const WorkerParams, *mut WorkerHandle) -> Status;
    ucp_worker_destroy(WorkerHandle);
    ucp_worker_get_address(WorkerHandle, *mut *mut c_void, *mut usize) -> Status;
    ucp_worker_release_address(WorkerHandle, *mut c_void);
    ucp_worker_get_efd(WorkerHandle, *mut c_int) -> Status;
    ucp_worker_arm(WorkerHandle) -> Status;
    ucp_worker_progress(WorkerHandle) -> c_uint;
    ucp_worker_set_am_recv_handler(WorkerHandle, *const MessageHandler) -> Status;
    ucp_ep_create(WorkerHandle, *const EndpointParams, *mut EndpointHandle) -> Status;
    ucp_ep_close_nbx(EndpointHandle, *const RequestParam) -> StatusPtr;
    ucp_ep_flush_nbx(EndpointHandle, *const RequestParam) -> StatusPtr;
    ucp_am_send_nbx(
        EndpointHandle, c_uint, *const c_void, usize, *const c_void, usize, *const RequestParam
    ) -> StatusPtr;
    ucp_request_check_status(*mut c_void) -> Status;
    ucp_request_free(*mut c_void);
    ucp_mem_map(ContextHandle, *const MemMapParams, *mut MemoryHandle) -> Status;
    ucp_mem_unmap(ContextHandle, MemoryHandle) -> Status;
    ucp_rkey_pack(ContextHandle, MemoryHandle, *mut *mut c_void, *mut usize) -> Status;
    ucp_rkey_buffer_release(*mut c_void);
    ucp_ep_rkey_unpack(EndpointHandle, *const c_void, *mut RemoteKeyHandle) -> Status;
    ucp_rkey_destroy(RemoteKeyHandle);
    ucp_put_nbx(
        EndpointHandle, *const c_void, usize, u64, RemoteKeyHandle, *const RequestParam
    ) -> StatusPtr;
    ucp_get_nbx(
        EndpointHandle, *mut c_void, usize, u64, RemoteKeyHandle, *const RequestParam
    ) -> StatusPtr;
}

/// What a call that may go on in the background returned.
pub(super) enum Started {
    /// It is over.
    Done,
    /// Its callback will run, and its request is to be freed then.
    Pending(*mut c_void),
    /// It did not start.
    Failed(Status),
}

/// Tells apart what a `StatusPtr` stands for (`UCS_PTR_IS_ERR`, `UCS_PTR_IS_PTR`).
pub(super) fn started(pointer: StatusPtr) -> Started {
    match pointer.addr().cast_signed() {
        0 => Started::Done,
        status @ ERR_LAST..0 => Started::Failed(Status::try_from(status).unwrap_or(Status::MIN)),
        _ => Started::Pending(pointer),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn structs_are_laid_out_as_the_header_says() {
        assert_eq!(size_of::<Status>(), 1);
        assert_eq!(size_of::<Params>(), 80);
        assert_eq!(offset_of!(Params, estimated_num_eps), 56);
        assert_eq!(size_of::<WorkerParams>(), 200);
        assert_eq!(offset_of!(WorkerParams, events), 144);
        assert_eq!(offset_of!(WorkerParams, flags), 168);
        assert_eq!(offset_of!(WorkerParams, client_id), 192);
        assert_eq!(size_of::<EndpointParams>(), 104);
        assert_eq!(offset_of!(EndpointParams, err_handler), 24);
        assert_eq!(offset_of!(EndpointParams, conn_request), 72);
        assert_eq!(size_of::<MemMapParams>(), 40);
        assert_eq!(offset_of!(MemMapParams, memory_type), 32);
        assert_eq!(size_of::<RequestParam>(), 72);
        assert_eq!(offset_of!(RequestParam, callback), 16);
        assert_eq!(offset_of!(RequestParam, memory), 64);
        assert_eq!(size_of::<MessageHandler>(), 32);
        assert_eq!(offset_of!(MessageHandler, callback), 16);
        assert_eq!(size_of::<MessageParam>(), 16);
    }

    #[test]
    fn statuses_and_requests_are_told_apart() {
        assert!(matches!(started(std::ptr::null_mut()), Started::Done));
        let refused = std::ptr::without_provenance_mut(usize::MAX - 24);
        assert!(matches!(started(refused), Started::Failed(ERR_CONNECTION_RESET)));
        let request = std::ptr::without_provenance_mut(0x7f00_0000_1000);
        assert!(matches!(started(request), Started::Pending(_)));
    }
}
