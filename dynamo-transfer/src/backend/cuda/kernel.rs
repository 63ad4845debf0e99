#![expect(unsafe_code, reason = "compiles and starts a kernel through C interfaces")]
//! The kernel that copies many small blocks, compiled for the device when that is opened.

use std::ffi::{CStr, CString, c_uint, c_void};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use cudarc::nvrtc;

use super::device::SpanCopy;
use super::library::{failed, has_compiler, unavailable};
use crate::error::Result;

/// A compiled kernel; of the context in which it was loaded.
pub(super) struct Kernel {
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Which blocks to copy: the same as `Table` in kernels.cu.
#[repr(C)]
struct Table {
    source: [u64; BLOCKS_MAX],
    target: [u64; BLOCKS_MAX],
    len: [u32; BLOCKS_MAX],
}

impl Kernel {
    /// Compiles the kernel for a device of `capability` and loads it into the current context.
    ///
    /// Fails with `BackendUnavailable` where there is no compiler, or one that does not know the device.
    pub(super) fn new(capability: (i32, i32)) -> Result<Self> {
        let image = compile(capability)?;
        // SAFETY: the image is what the compiler wrote, and is copied by the call.
        let module = unsafe { driver::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(|error| failed(error, "loading a kernel"))?;
        // SAFETY: the module was just loaded.
        match unsafe { driver::module::get_function(module, c"copy_blocks".to_owned()) } {
            Ok(function) => Ok(Self { module, function }),
            Err(error) => {
                // SAFETY: nothing of the module is used.
                let _ = unsafe { driver::module::unload(module) };
                Err(failed(error, "finding a kernel"))
            }
        }
    }

    /// Starts copying.
    ///
    /// # Safety
    /// As for [`Device::submit`](super::device::Device::submit), with the module's context current.
    pub(super) unsafe fn copy(&self, copies: &[SpanCopy], stream: CUstream) -> Result<()> {
        for tables in &launches(copies) {
            let (table, count, len_max) = tables;
            let shares = len_max.div_ceil(BYTES_PER_SHARE).clamp(1, SHARES_MAX);
            let mut parameters = [std::ptr::from_ref::<Table>(table).cast_mut().cast::<c_void>()];
            let (grid, threads) = ((*count, shares, 1), (THREADS, 1, 1));
            // SAFETY: the parameter is the kernel's only one, of its type, and copied by the call; what
            // it names is valid by the caller's promise.
            let launched = unsafe {
                driver::launch_kernel(self.function, grid, threads, 0, stream, &mut parameters)
            };
            launched.map_err(|error| failed(error, "starting a kernel"))?;
        }
        Ok(())
    }

    /// Unloads the kernel.
    ///
    /// # Safety
    /// Its context is current, and it runs and is used no more.
    pub(super) unsafe fn unload(&self) {
        // SAFETY: the caller's promise.
        if let Err(error) = unsafe { driver::module::unload(self.module) } {
            tracing::warn!(%error, "unloading a kernel");
        }
    }
}

/// Fills tables with the copies, none fuller than another by more than one; returns each with its count
/// of blocks and the length of the longest.
fn launches(copies: &[SpanCopy]) -> Vec<(Box<Table>, u32, u32)> {
    let blocks: Vec<(u64, u64, u32)> = copies.iter().flat_map(pieces).collect();
    let fill = blocks.len().div_ceil(blocks.len().div_ceil(BLOCKS_MAX).max(1)).max(1);
    let tables = blocks.chunks(fill).map(|blocks| {
        let (source, target, len) = ([0; BLOCKS_MAX], [0; BLOCKS_MAX], [0; BLOCKS_MAX]);
        let mut table = Box::new(Table { source, target, len });
        for (at, block) in blocks.iter().enumerate() {
            (table.source[at], table.target[at], table.len[at]) = *block;
        }
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        (table, count, blocks.iter().map(|block| block.2).max().unwrap_or(0))
    });
    tables.collect()
}

/// Cuts a copy into blocks whose length a table can tell.
fn pieces(copy: &SpanCopy) -> impl Iterator<Item = (u64, u64, u32)> + use<> {
    let SpanCopy { source, target } = *copy;
    (0..source.len()).step_by(PIECE_MAX).map(move |at| {
        let len = PIECE_MAX.min(source.len() - at);
        let address = |start: *mut u8| start.wrapping_add(at).expose_provenance() as u64;
        (address(source.as_ptr()), address(target.as_ptr()), u32::try_from(len).unwrap_or(0))
    })
}

/// Compiles for the very device, so that nothing is left to the driver's own compiler, which may be older.
fn compile((major, minor): (i32, i32)) -> Result<Vec<u8>> {
    if !has_compiler() {
        return Err(unavailable("no NVRTC: libnvrtc.so is not found"));
    }
    let invalid = |error| unavailable(format!("NVRTC: {error}"));
    let source = format!("#define BLOCKS_MAX {BLOCKS_MAX}\n{SOURCE}");
    let source = CString::new(source).map_err(|error| unavailable(error.to_string()))?;
    let program = nvrtc::result::create_program(&source, Some(c"kernels.cu")).map_err(invalid)?;
    let options = [format!("--gpu-architecture=sm_{major}{minor}"), "--std=c++14".to_owned()];
    // SAFETY: the program was just created, and is destroyed below.
    let compiled = unsafe { nvrtc::result::compile_program(program, &options) };
    let image = match compiled {
        Ok(()) => image(program),
        Err(error) => {
            // SAFETY: as above.
            let log = unsafe { nvrtc::result::get_program_log(program) }.unwrap_or_default();
            let log = log.iter().map(|&c| c.cast_unsigned()).collect::<Vec<u8>>();
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            Err(unavailable(format!("NVRTC for sm_{major}{minor}: {error}: {log}")))
        }
    };
    // SAFETY: as above; it is used no more.
    let _ = unsafe { nvrtc::result::destroy_program(program) };
    image
}

fn image(program: nvrtc::sys::nvrtcProgram) -> Result<Vec<u8>> {
    let invalid = |error| unavailable(format!("NVRTC: {error}"));
    let mut len = 0;
    // SAFETY: the program is compiled, and the place is written to and nothing else.
    let told = unsafe { nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut len) };
    told.result().map_err(invalid)?;
    let mut image = vec![0u8; len];
    // SAFETY: the image is as long as was just said.
    let read = unsafe { nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) };
    read.result().map_err(invalid)?;
    Ok(image)
}

const SOURCE: &str = include_str!("kernels.cu");

/// As many as fit into the 4,096 bytes of a kernel's parameters.
const BLOCKS_MAX: usize = 192;

/// What a block of a table is at most; a multiple of what alignment matters for.
const PIECE_MAX: usize = 1 << 30;

/// One step of all threads with four loads of 16 bytes each.
const BYTES_PER_SHARE: u32 = THREADS * 4 * 16;

/// Enough to keep a device busy with a single block.
const SHARES_MAX: u32 = 256;

const THREADS: c_uint = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Span;

    #[test]
    fn a_table_fits_into_the_parameters_of_a_kernel() {
        assert!(size_of::<Table>() <= 4096);
        assert_eq!(size_of::<Table>(), BLOCKS_MAX * 20);
        assert_eq!(size_of::<cudarc::driver::sys::CUdeviceptr>(), 8);
    }

    #[test]
    fn every_byte_of_every_block_is_in_one_table_and_tables_are_alike() {
        let memory = vec![0u8; 500];
        let copies: Vec<_> = (0..500)
            .map(|at| Span::of(&memory[at..at + (500 - at).min(3)]))
            .map(|span| SpanCopy { source: span, target: span })
            .collect();
        let tables = launches(&copies);
        assert_eq!(tables.iter().map(|table| table.1).collect::<Vec<_>>(), [167, 167, 166]);
        let listed: Vec<_> = tables
            .iter()
            .flat_map(|(table, count, _)| {
                (0..*count as usize).map(|at| (table.source[at], table.target[at], table.len[at]))
            })
            .collect();
        let expected: Vec<_> = copies.iter().flat_map(pieces).collect();
        assert_eq!(listed, expected);
        assert_eq!(listed.iter().map(|block| block.2).sum::<u32>(), 498 * 3 + 2 + 1);
        assert!(launches(&[]).is_empty());
    }

    #[test]
    fn the_kernel_compiles_for_each_generation_where_there_is_a_compiler() {
        if !has_compiler() {
            use std::io::Write as _;
            let skipped = b"SKIPPED: needs NVRTC; `pip install nvidia-cuda-nvrtc` has it\n";
            std::io::stderr().write_all(skipped).unwrap();
            return;
        }
        for capability in [(8, 0), (9, 0)] {
            assert_eq!(&compile(capability).unwrap()[..4], b"\x7fELF");
        }
        assert!(compile((1, 0)).unwrap_err().to_string().contains("sm_10"));
    }
}
