#include "session/byte_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/failure.h"

namespace etcuda {
namespace {

// Linux reads and writes no more at a time.
constexpr size_t kMostAtOnce = size_t{1} << 30;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The file behind a path and its links; the path itself if there is none yet.
std::string real_path(const std::string& path) {
  char real[PATH_MAX];
  return realpath(path.c_str(), real) == nullptr ? path : real;
}

}  // namespace

MemorySink::~MemorySink() {
  std::free(data_);
}

void MemorySink::write(const void* data, size_t nbytes) {
  if (nbytes == 0) return;
  if (nbytes > capacity_ - size_) {
    const size_t wanted = std::max(size_ + nbytes, capacity_ + capacity_ / 2);
    auto* grown = static_cast<uint8_t*>(std::realloc(data_, wanted));
    if (grown == nullptr) throw std::bad_alloc();
    data_ = grown;
    capacity_ = wanted;
  }
  std::memcpy(data_ + size_, data, nbytes);
  size_ += nbytes;
}

uint8_t* MemorySink::release() noexcept {
  uint8_t* released = data_;
  data_ = nullptr;
  return released;
}

FileSink::FileSink(const std::string& path) : path_(path), real_(real_path(path)) {
  struct stat old{};
  const bool is_there = stat(real_.c_str(), &old) == 0;
  if (is_there && !S_ISREG(old.st_mode)) {
    fail(ErrorCode::AccessFailed,
         "%s: expected the path of a file, got something else, such as a folder. Give the "
         "name of a file.",
         path_.c_str());
  }
  static std::atomic<unsigned> count{0};
  for (int attempt = 0; file_ < 0 && attempt < 100; ++attempt) {
    temporary_ = real_ + format(".etcuda-%d-%u", static_cast<int>(getpid()), count++);
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0 && errno != EEXIST) break;
  }
  if (file_ < 0) {
    temporary_.clear();
    fail_to_write(std::strerror(errno));
  }
  // Where it fails the file is its writer's, as any new one.
  if (is_there) static_cast<void>(fchmod(file_, old.st_mode & 07777));
}

FileSink::~FileSink() {
  if (file_ >= 0) close(file_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void FileSink::fail_to_write(const char* what) const {
  const std::string reason = what;
  fail(ErrorCode::AccessFailed,
       "%s: expected a path that can be written, got: %s. Check that the folder exists, that you may write "
       "there, and "
       "that there is room.",
       path_.c_str(), reason.c_str());
}

void FileSink::write(const void* data, size_t nbytes) {
  const auto* from = static_cast<const char*>(data);
  while (nbytes > 0) {
    const ssize_t written = ::write(file_, from, std::min(nbytes, kMostAtOnce));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_to_write(std::strerror(errno));
    from += written;
    nbytes -= static_cast<size_t>(written);
  }
}

void FileSink::finish() {
  if (fsync(file_) != 0) fail_to_write(std::strerror(errno));
  const int written = file_;
  file_ = -1;
  if (close(written) != 0) fail_to_write(std::strerror(errno));
  if (rename(temporary_.c_str(), real_.c_str()) != 0) fail_to_write(std::strerror(errno));
  temporary_.clear();
  // So that the new name is on the disk too. Some file systems refuse, and the file is whole all the same.
  const int folder = open(folder_of(real_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  static_cast<void>(fsync(folder));
  close(folder);
}

void MemorySource::read(uint64_t offset, void* to, size_t nbytes) const {
  if (offset > nbytes_ || nbytes > nbytes_ - offset)
    fail(ErrorCode::Internal, "a read beyond the end of a saved session.");
  if (nbytes != 0) std::memcpy(to, data_ + offset, nbytes);
}

FileSource::FileSource(const std::string& path) : path_(path) {
  // Without waiting: a FIFO that nobody writes to would be waited for.
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status{};
  if (file_ < 0 || fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
    const std::string reason = file_ < 0 ? std::strerror(errno) : "it is no file";
    if (file_ >= 0) close(file_);
    fail(ErrorCode::AccessFailed,
         "%s: expected a saved session, got: %s. Give the path of a file that save wrote.", path.c_str(),
         reason.c_str());
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

FileSource::~FileSource() {
  close(file_);
}

void FileSource::read(uint64_t offset, void* to, size_t nbytes) const {
  auto* next = static_cast<char*>(to);
  while (nbytes > 0) {
    const ssize_t got = pread(file_, next, std::min(nbytes, kMostAtOnce), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      fail(ErrorCode::AccessFailed, "%s: reading it failed: %s. Check the disk, or copy the file again.",
           path_.c_str(), got == 0 ? "it became shorter meanwhile" : std::strerror(errno));
    }
    next += got;
    offset += static_cast<uint64_t>(got);
    nbytes -= static_cast<size_t>(got);
  }
}

}  // namespace etcuda
