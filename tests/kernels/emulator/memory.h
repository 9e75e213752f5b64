// Arguments of an emulated kernel: numbers, then files that are its memory.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

// A file in memory, at a multiple of 16 as malloc gives it, and as long: a sanitizer sees what lies beyond.
class Memory {
 public:
  explicit Memory(const char* path) : path_(path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) die("cannot read");
    std::fseek(file, 0, SEEK_END);
    size_ = std::ftell(file);
    std::rewind(file);
    data_ = std::malloc(size_ ? size_ : 1);
    if (std::fread(data_, 1, size_, file) != size_) die("cannot read");
    std::fclose(file);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }
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
  size_t size_ = 0;
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
