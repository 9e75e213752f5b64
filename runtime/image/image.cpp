#include "image/image.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/failure.h"
#include "shims/table.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

namespace etcuda {
namespace {

constexpr unsigned kImageAbi = 1;

std::string descriptor_path(int file) {
  return format("/proc/self/fd/%d", file);
}

// A memory file that may be executed. Kernels before 6.3 do not know the flag that says so.
int open_memory_file() {
  const int file = memfd_create("etcuda_image", MFD_CLOEXEC | MFD_EXEC);
  if (file >= 0 || errno != EINVAL) return file;
  return memfd_create("etcuda_image", MFD_CLOEXEC);
}

void write_all(int file, const uint8_t* data, size_t nbytes) {
  while (nbytes > 0) {
    const ssize_t written = write(file, data, nbytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      fail(ErrorCode::MemoryAllocationFailed, "a code image of %zu bytes could not be written to memory: %s.",
           nbytes, std::strerror(errno));
    }
    data += written;
    nbytes -= static_cast<size_t>(written);
  }
}

}  // namespace

CodeImage::CodeImage(const ImageSpec& spec) : target_(spec.target) {
  const Digest got = sha256(spec.data, spec.nbytes);
  if (got != spec.sha256) {
    fail(ErrorCode::InvalidProgram,
         "the code image for %s is damaged: expected SHA-256 %s, got %s. Copy or export the .pte file again.",
         target_.c_str(), to_hex(spec.sha256).c_str(), to_hex(got).c_str());
  }
  try {
    map(spec);
    bind_imports();
    bind_interface();
  } catch (...) {
    unmap();
    throw;
  }
}

CodeImage::~CodeImage() {
  unmap();
}

void CodeImage::unmap() noexcept {
  if (handle_ != nullptr && dlclose(handle_) != 0)
    report_error(format("a code image was not unmapped: %s", dlerror()));
  if (file_ >= 0) close(file_);
  handle_ = nullptr;
  file_ = -1;
}

void CodeImage::map(const ImageSpec& spec) {
  file_ = open_memory_file();
  if (file_ < 0) {
    fail(ErrorCode::AccessFailed, "this system does not allow executable memory files (memfd_create: %s).",
         std::strerror(errno));
  }
  write_all(file_, spec.data, spec.nbytes);
  // The loader knows a library by its path. The descriptor stays open so that no later image gets the same
  // number; a library that could not be unloaded may still hold an earlier one.
  while (void* other = dlopen(descriptor_path(file_).c_str(), RTLD_NOLOAD | RTLD_NOW | RTLD_LOCAL)) {
    dlclose(other);
    const int next = fcntl(file_, F_DUPFD_CLOEXEC, file_ + 1);
    if (next < 0) fail(ErrorCode::OutOfResources, "no file descriptor is left: %s.", std::strerror(errno));
    close(file_);
    file_ = next;
  }
  handle_ = dlopen(descriptor_path(file_).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    const char* error = dlerror();
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the code image for %s could not be loaded: %s. It needs glibc 2.34 and libstdc++ of GCC 12 or "
         "newer.",
         target_.c_str(), error == nullptr ? "unknown reason" : error);
  }
}

void* CodeImage::symbol(const char* name) const {
  void* address = dlsym(handle_, name);
  if (address == nullptr) {
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the code image for %s has no symbol %s. It was not made by etcuda's exporter: export the model "
         "again.",
         target_.c_str(), name);
  }
  return address;
}

void CodeImage::check_description(const Digest& description) const {
  // Images that were written by hand have none.
  const void* stored = dlsym(handle_, "etcuda_image_description");
  if (stored == nullptr) return;
  Digest expected;
  std::memcpy(expected.data(), stored, expected.size());
  if (expected != description) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's description is not the one that the code image for %s was made with: expected "
         "SHA-256 "
         "%s, got %s. Export the model again.",
         target_.c_str(), to_hex(expected).c_str(), to_hex(description).c_str());
  }
}

void CodeImage::bind_imports() {
  const unsigned abi = *static_cast<const unsigned*>(symbol("etcuda_image_abi"));
  if (abi != kImageAbi) {
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the code image for %s has ABI %u, this runtime has %u. Export the model with the etcuda version "
         "that is "
         "installed here.",
         target_.c_str(), abi, kImageAbi);
  }
  const auto* names = static_cast<const char* const*>(symbol("etcuda_image_imports"));
  auto** slots = static_cast<void**>(symbol("etcuda_image_slots"));
  std::string missing;
  for (size_t i = 0; names[i] != nullptr; ++i) {
    slots[i] = find_shim(names[i]);
    if (slots[i] == nullptr) missing += std::string(missing.empty() ? "" : ", ") + names[i];
  }
  if (!missing.empty()) {
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the code image for %s needs functions that this runtime does not have: %s. Export the model with "
         "the "
         "etcuda version that is installed here.",
         target_.c_str(), missing.c_str());
  }
}

void CodeImage::bind_interface() {
  const auto bind = [this](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(symbol(name));
  };
  bind(aoti_.create, "AOTInductorModelContainerCreateWithDevice");
  bind(aoti_.destroy, "AOTInductorModelContainerDelete");
  bind(aoti_.num_inputs, "AOTInductorModelContainerGetNumInputs");
  bind(aoti_.num_outputs, "AOTInductorModelContainerGetNumOutputs");
  bind(aoti_.num_constants, "AOTInductorModelContainerGetNumConstants");
  bind(aoti_.constant_name, "AOTInductorModelContainerGetConstantName");
  bind(aoti_.constant_from_folded, "AOTInductorModelContainerGetConstantFromFolded");
  bind(aoti_.update_constants, "AOTInductorModelContainerUpdateUserManagedConstantBufferPairs");
  bind(aoti_.run, "AOTInductorModelContainerRunSingleThreaded");
  const auto find = [this](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle_, name));
  };
  find(aoti_.constant_dtype, "AOTInductorModelContainerGetConstantDtype");
  find(aoti_.constant_nbytes, "AOTInductorModelContainerGetConstantDataSize");
  find(aoti_.last_error, "AOTInductorGetLastError");
}

}  // namespace etcuda
