// Arguments of an emulated kernel: numbers, then files that are its memory.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

// A file in memory, at a multiple of 16, which blocks that are processes share. What lies 16 bytes or more
// beyond its end cannot be touched.
class Memory {
 public:
  explicit Memory(const char* path) : path_(path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) die("cannot read");
    std::fseek(file, 0, SEEK_END);
    size_ = std::ftell(file);
    std::rewind(file);
    const size_t page = sysconf(_SC_PAGESIZE), place = (size_ + 15) / 16 * 16;
    whole_ = (place + page - 1) / page * page + page;
    const int shared = MAP_SHARED | MAP_ANONYMOUS;
    void* begin = mmap(nullptr, whole_, PROT_READ | PROT_WRITE, shared, -1, 0);
    if (begin == MAP_FAILED) die("cannot get memory");
    data_ = (char*)begin + whole_ - page - place;
    if (mprotect((char*)begin + whole_ - page, page, PROT_NONE) != 0) die("cannot protect memory");
    if (std::fread(data_, 1, size_, file) != size_) die("cannot read");
    std::fclose(file);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    const size_t page = sysconf(_SC_PAGESIZE);
    munmap((char*)((uintptr_t)data_ + (size_ + 15) / 16 * 16 + page - whole_), whole_);
  }
  void* data() { return data_; }
  void save() {
    std::FILE* file = std::fopen(path_.c_str(), "wb");
    if (file == nullptr || std::fwrite(data_, 1, size_, file) != size_ || std::fclose(file) != 0)
      die("cannot write");
  }

 private:
  [[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "%s: %s\n", path_.c_str(), what);
    std::exit(2);
  }
  std::string path_;
  size_t size_ = 0, whole_ = 0;
  void* data_ = nullptr;
};

class Arguments {
 public:
  Arguments(int count, char** values, int numbers) : values_(values + 1), numbers_(numbers) {
    if (count <= numbers + 1) {
      std::fprintf(stderr, "expected %d numbers and files, got %d arguments\n", numbers, count - 1);
      std::exit(2);
    }
  }
  int operator[](int i) const { return std::atoi(values_[i]); }
  const char* file(int i) const { return values_[numbers_ + i]; }

 private:
  char** values_;
  int numbers_;
};
