// Where a saved session goes to and comes from: a file or memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace etcuda {

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  virtual void write(const void* data, size_t nbytes) = 0;
};

class MemorySink final : public ByteSink {
 public:
  ~MemorySink() override;
  void write(const void* data, size_t nbytes) override;
  // Memory of malloc, which is the caller's from now on.
  uint8_t* release() noexcept;
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

// Writes beside `path` and takes its place in finish(), with the mode of the file that it replaces. A link is
// followed. Before finish(), and where anything fails, the file at `path` is what it was.
class FileSink final : public ByteSink {
 public:
  explicit FileSink(const std::string& path);
  ~FileSink() override;
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  void write(const void* data, size_t nbytes) override;
  void finish();

 private:
  [[noreturn]] void fail_to_write(const char* what) const;

  const std::string path_;
  std::string real_;
  std::string temporary_;
  int file_ = -1;
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  // Reads exactly nbytes from `offset` on, or throws Failure.
  virtual void read(uint64_t offset, void* to, size_t nbytes) const = 0;
  // For messages.
  virtual std::string name() const = 0;
};

class MemorySource final : public ByteSource {
 public:
  MemorySource(const void* data, size_t nbytes) : data_(static_cast<const uint8_t*>(data)), nbytes_(nbytes) {}
  uint64_t size() const override { return nbytes_; }
  void read(uint64_t offset, void* to, size_t nbytes) const override;
  std::string name() const override { return "the saved session"; }

 private:
  const uint8_t* const data_;
  const size_t nbytes_;
};

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  uint64_t size() const override { return size_; }
  void read(uint64_t offset, void* to, size_t nbytes) const override;
  std::string name() const override { return path_; }

 private:
  const std::string path_;
  int file_ = -1;
  uint64_t size_ = 0;
};

}  // namespace etcuda
