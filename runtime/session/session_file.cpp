#include "session/session_file.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "blob/layout.h"
#include "core/failure.h"
#include "session/transfer.h"

namespace etcuda {
namespace {

constexpr char kMagic[8] = {'E', 'T', 'C', 'U', 'S', 'E', 'S', '\1'};
constexpr uint32_t kHasProgram = 1;
// More than the largest description that fork, save and restore are meant for, so that damage allocates
// little.
constexpr uint64_t kMaxDescription = uint64_t{64} << 20;
constexpr uint32_t kMaxName = 4096;

struct Header {
  char magic[8];
  uint32_t header_bytes;
  uint32_t flags;
  uint64_t description_bytes;
  uint64_t content_bytes;
  Digest program;
};
static_assert(sizeof(Header) == 64, "the header is written as it is in memory");

class DescriptionWriter {
 public:
  template <typename T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void state(const StateLayout& layout) {
    number(static_cast<uint32_t>(layout.name.size()));
    bytes_ += layout.name;
    number(static_cast<int32_t>(layout.dtype));
    number(static_cast<uint32_t>(layout.sizes.size()));
    for (const int64_t size : layout.sizes) number(size);
    for (const int64_t stride : layout.strides) number(stride);
    number(layout.nbytes);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class SessionReader {
 public:
  explicit SessionReader(const ByteSource& source) : source_(source) {}

  // Everything but the content, checked.
  void read_description() {
    if (source_.size() < sizeof(Header) + sizeof(Digest)) {
      damaged("expected at least %zu bytes, got %" PRIu64, sizeof(Header) + sizeof(Digest), source_.size());
    }
    source_.read(0, &header_, sizeof(header_));
    if (std::memcmp(header_.magic, kMagic, sizeof(kMagic)) != 0) {
      const bool is_other = std::memcmp(header_.magic, kMagic, sizeof(kMagic) - 1) == 0;
      damaged(is_other ? "expected version 1 of the format, got version %u"
                       : "it does not start as one does (got 0x%02x)",
              static_cast<unsigned>(static_cast<uint8_t>(header_.magic[is_other ? 7 : 0])));
    }
    if (header_.header_bytes != sizeof(Header) || header_.flags > kHasProgram ||
        header_.description_bytes > kMaxDescription ||
        header_.description_bytes > source_.size() - sizeof(Header) ||
        header_.content_bytes > source_.size()) {
      damaged("its header is not possible: %u bytes, flags %u, description of %" PRIu64
              " bytes, content of %" PRIu64,
              header_.header_bytes, header_.flags, header_.description_bytes, header_.content_bytes);
    }
    description_.resize(static_cast<size_t>(header_.description_bytes));
    source_.read(sizeof(Header), description_.data(), description_.size());
    parse();
    check_digest();
  }

  std::optional<Digest> program() const {
    return (header_.flags & kHasProgram) != 0 ? std::optional<Digest>(header_.program) : std::nullopt;
  }
  const std::vector<StateLayout>& layouts() const { return layouts_; }

  // Reads the content of each state, in their order.
  template <typename Take>
  void read_content(const Take& take) const {
    uint64_t offset = sizeof(Header) + description_.size();
    std::vector<char> content;
    for (size_t i = 0; i < layouts_.size(); ++i) {
      content.resize(static_cast<size_t>(layouts_[i].nbytes));
      source_.read(offset, content.data(), content.size());
      const Digest got = sha256(content.data(), content.size());
      if (got != digests_[i]) {
        damaged("the bytes of %s: expected SHA-256 %s, got %s", layouts_[i].name.c_str(),
                shortened(digests_[i]).c_str(), shortened(got).c_str());
      }
      take(layouts_[i], content.data());
      offset += content.size();
    }
  }

 private:
  [[noreturn]] void damaged(const char* pattern, ...) const __attribute__((format(printf, 2, 3))) {
    char text[512];
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(text, sizeof(text), pattern, arguments);
    va_end(arguments);
    fail(ErrorCode::InvalidExternalData,
         "%s is no saved session or is damaged: %s. Copy it again, or save the session again. The session is "
         "what it "
         "was.",
         source_.name().c_str(), text);
  }

  template <typename T>
  T number() {
    T value;
    if (description_.size() - next_ < sizeof(T)) damaged("its description ends within a number");
    std::memcpy(&value, description_.data() + next_, sizeof(T));
    next_ += sizeof(T);
    return value;
  }

  void parse() {
    const auto count = number<uint32_t>();
    uint64_t content = 0;
    for (uint32_t i = 0; i < count; ++i) {
      layouts_.push_back(layout());
      if (__builtin_add_overflow(content, layouts_.back().nbytes, &content))
        damaged("its states are too large");
    }
    if (next_ != description_.size() || content != header_.content_bytes)
      damaged("its description and its header do not fit together");
    uint64_t expected = 0;
    const uint64_t digests = (uint64_t{count} + 1) * sizeof(Digest);
    if (__builtin_add_overflow(content, sizeof(Header) + description_.size() + digests, &expected) ||
        expected != source_.size()) {
      damaged("expected %" PRIu64 " bytes, got %" PRIu64 ": it is cut, or something was added", expected,
              source_.size());
    }
  }

  StateLayout layout() {
    StateLayout read;
    const auto length = number<uint32_t>();
    if (length > kMaxName || length > description_.size() - next_)
      damaged("a name of %u bytes is too long", length);
    read.name = description_.substr(next_, length);
    next_ += length;
    read.dtype = static_cast<DType>(number<int32_t>());
    const auto rank = number<uint32_t>();
    if (rank > kMaxTensorRank || dtype_size(read.dtype) == 0)
      damaged("a state of rank %u and dtype %d is not possible", rank, static_cast<int>(read.dtype));
    bool is_possible = true;
    for (auto* list : {&read.sizes, &read.strides}) {
      for (uint32_t i = 0; i < rank; ++i) {
        list->push_back(number<int64_t>());
        is_possible = is_possible && list->back() >= 0;
      }
    }
    read.nbytes = number<uint64_t>();
    const auto extent =
        is_possible ? view_extent(read.sizes.data(), read.strides.data(), rank) : std::nullopt;
    const auto nbytes =
        extent ? checked_multiply(*extent, static_cast<int64_t>(dtype_size(read.dtype))) : std::nullopt;
    if (!nbytes || static_cast<uint64_t>(*nbytes) != read.nbytes)
      damaged("a state's sizes do not fit its %" PRIu64 " bytes", read.nbytes);
    return read;
  }

  // The last 32 bytes are over the header, the description and the states' digests, so no byte is without
  // one.
  void check_digest() {
    digests_.resize(layouts_.size());
    const size_t list = digests_.size() * sizeof(Digest);
    const uint64_t offset = sizeof(Header) + description_.size() + header_.content_bytes;
    if (list != 0) source_.read(offset, digests_.data(), list);
    Digest expected;
    source_.read(offset + list, expected.data(), expected.size());
    const Digest got = digest_of(header_, description_, digests_);
    if (got != expected)
      damaged("expected SHA-256 %s, got %s", shortened(expected).c_str(), shortened(got).c_str());
  }

 public:
  static Digest digest_of(const Header& header, const std::string& description,
                          const std::vector<Digest>& digests) {
    std::string all(reinterpret_cast<const char*>(&header), sizeof(header));
    all += description;
    for (const Digest& digest : digests)
      all.append(reinterpret_cast<const char*>(digest.data()), digest.size());
    return sha256(all.data(), all.size());
  }

 private:
  const ByteSource& source_;
  Header header_{};
  std::string description_;
  size_t next_ = 0;
  std::vector<StateLayout> layouts_;
  std::vector<Digest> digests_;
};

void check_fits(const SessionState& session, const SessionReader& reader, const std::string& name) {
  const auto program = reader.program();
  if (session.program() && program && *session.program() != *program) {
    fail(ErrorCode::InvalidArgument,
         "%s was saved with another program: expected one whose weights have the digest %s, got %s. Restore "
         "it into a "
         "session of the program that it was saved with. The session is what it was.",
         name.c_str(), shortened(*session.program()).c_str(), shortened(*program).c_str());
  }
  for (const StateLayout& layout : reader.layouts()) {
    const auto it = session.held().find(layout.name);
    if (it == session.held().end() || it->second.layout == layout) continue;
    fail(ErrorCode::InvalidArgument,
         "%s was saved with another export of the program: the state %s is %s there and %s here. Save it "
         "again with "
         "this export. The session is what it was.",
         name.c_str(), layout.name.c_str(), layout.describe().c_str(), it->second.layout.describe().c_str());
  }
}

}  // namespace

void save_session(const SessionState& session, ByteSink& sink) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.header_bytes = sizeof(Header);
  if (session.program()) {
    header.flags = kHasProgram;
    header.program = *session.program();
  }
  DescriptionWriter description;
  description.number(static_cast<uint32_t>(session.held().size()));
  for (const auto& [name, held] : session.held()) {
    description.state(held.layout);
    header.content_bytes += held.layout.nbytes;
  }
  header.description_bytes = description.bytes().size();
  sink.write(&header, sizeof(header));
  sink.write(description.bytes().data(), description.bytes().size());
  Transfer transfer;
  std::vector<char> through;
  std::vector<Digest> digests;
  for (const auto& [name, held] : session.held()) {
    const Storage& storage = *held.storage;
    const void* content = storage.data;
    if (storage.device_type != kHost) {
      through.resize(storage.nbytes);
      transfer.read(through.data(), storage);
      content = through.data();
    }
    digests.push_back(sha256(content, storage.nbytes));
    sink.write(content, storage.nbytes);
  }
  for (const Digest& digest : digests) sink.write(digest.data(), digest.size());
  const Digest last = SessionReader::digest_of(header, description.bytes(), digests);
  sink.write(last.data(), last.size());
}

void restore_session(SessionState& session, const ByteSource& source) {
  SessionReader reader(source);
  reader.read_description();
  check_fits(session, reader, source.name());
  std::map<std::string, HeldState> restored;
  Transfer transfer;
  reader.read_content([&](const StateLayout& layout, const void* content) {
    const auto it = session.held().find(layout.name);
    HeldState state{layout, nullptr, {}};
    if (it == session.held().end()) {
      // On the host until a method says where it is needed.
      state.storage = allocate_persistent_storage(static_cast<size_t>(layout.nbytes), kHost, 0);
    } else {
      state.storage = Transfer::allocate_like(*it->second.storage);
      state.source = it->second.source;
    }
    transfer.write(*state.storage, content);
    restored[layout.name] = std::move(state);
  });
  session.replace(reader.program(), std::move(restored));
}

}  // namespace etcuda
