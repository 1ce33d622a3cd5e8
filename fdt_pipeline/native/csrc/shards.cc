// A folder of raw shards into a pool: what `python -m tools shard --encode raw` wrote, found by its indexes.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <locale>
#include <sstream>
#include <stdexcept>

#include "json.h"
#include "pool.h"
#include "text.h"
#include "threads.h"

namespace fdt {
namespace {

[[noreturn]] void fail(const std::string &path, const std::string &what) {
  throw std::invalid_argument(path + ": " + what);
}

constexpr size_t kBlock = size_t{1} << 20;  // bytes of images that are set at once, as a GPU is waited for each time

std::string read_file(const std::string &path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(path, std::strerror(errno));
  std::string content;
  struct stat state;
  ssize_t got = 0;
  if (fstat(file, &state) == 0 && S_ISREG(state.st_mode)) {
    content.resize(static_cast<size_t>(state.st_size));
    for (size_t at = 0; at < content.size(); at += static_cast<size_t>(got)) {
      got = read(file, &content[at], content.size() - at);
      if (got < 0 && errno == EINTR)
        got = 0;
      else if (got <= 0)
        break;
    }
  } else {
    got = -1;
    errno = EISDIR;
  }
  const int error = errno;
  close(file);
  if (got < 0) fail(path, std::strerror(error));
  if (got == 0 && !content.empty()) fail(path, "became shorter while it was read");
  return content;
}

struct ShardEntry {
  std::string path;
  size_t num_samples, num_bytes, first;
};

struct Set {
  Shape shape;
  size_t num_samples = 0;
  uint32_t num_classes = 0;
  std::vector<ShardEntry> shards;
};

Set parse_manifest(const std::string &folder, const Json &manifest) {
  Set set;
  if (manifest.at("encoding").string() != "raw")
    throw std::invalid_argument("a resident pool needs raw shards, these are " + manifest.at("encoding").string() +
                                ": shard the images again with --encode raw, or use FDTLoader, which decodes them");
  const Json &shape = manifest.at("shape");
  if (shape.kind == Json::Kind::kNull)
    throw std::invalid_argument("the images differ in size: a resident pool needs one size, so shard them at one");
  if (shape.array().size() != 3) throw std::invalid_argument("expected shape [h, w, c]");
  set.shape = {shape.array()[0].integer(1), shape.array()[1].integer(1), shape.array()[2].integer(1)};
  set.num_classes = static_cast<uint32_t>(manifest.at("classes").array().size());
  for (const Json &shard : manifest.at("shards").array()) {
    const std::string &name = shard.at("name").string();
    if (name.find('/') != std::string::npos) throw std::invalid_argument("a shard's name holds a path: " + name);
    const auto samples = static_cast<size_t>(shard.at("num_samples").integer(1));
    const auto bytes = static_cast<size_t>(shard.at("num_bytes").integer(1));
    set.shards.push_back({folder + "/" + name, samples, bytes, set.num_samples});
    set.num_samples += samples;
    if (set.num_samples > 0xFFFFFFFFu) throw std::invalid_argument("expected less than 2^32 samples");
  }
  const auto expected = static_cast<size_t>(manifest.at("num_samples").integer(0));
  if (expected != set.num_samples)
    throw std::invalid_argument("num_samples is " + std::to_string(expected) + ", but its shards hold " +
                                std::to_string(set.num_samples));
  if (set.num_samples == 0) throw std::invalid_argument("the pool is empty: expected one image or more");
  constexpr int64_t most = (int64_t{1} << 31) / kMostChannels;
  if (set.shape.h >= most || set.shape.w >= most || set.shape.plane() >= most)
    throw std::invalid_argument("expected images of less than 2^31 bytes");
  if (set.shape.c > kMostChannels)
    throw std::invalid_argument("expected 1 to 4 channels, got " + std::to_string(set.shape.c));
  return set;
}

// The bytes of an npy file before the pixels, as NumPy writes it for u8[h w c]: version 1.0, filled up to 64.
std::string npy_header(const Shape &shape) {
  std::string text = "{'descr': '|u1', 'fortran_order': False, 'shape': (" + std::to_string(shape.h) + ", " +
                     std::to_string(shape.w) + ", " + std::to_string(shape.c) + "), }";
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xFF);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

int64_t parse_label(const std::string &digits) {
  if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw std::invalid_argument("expected a class number, got \"" + printable(digits) + "\"");
  return std::stoll(digits);
}

// Bytes [offset, offset + size) of a tar, as a line of its index has them.
std::string member(const std::string &tar, std::istringstream &line, const std::string &extension, std::string &name) {
  std::string kind;
  size_t offset = 0, size = 0;
  line >> kind >> offset >> size >> name;
  if (line.fail() || kind != extension)
    throw std::invalid_argument("its index names no ." + extension + " where expected");
  if (offset > tar.size() || size > tar.size() - offset)
    throw std::invalid_argument("its index points outside of the tar");
  return tar.substr(offset, size);
}

void read_shard(const ShardEntry &shard, const Set &set, Pool &pool, int64_t *labels) {
  const std::string tar = read_file(shard.path);
  if (tar.size() != shard.num_bytes)
    fail(shard.path, "expected " + std::to_string(shard.num_bytes) + " bytes as its manifest says, got " +
                         std::to_string(tar.size()) + ": shard again with --overwrite");
  const std::string index_path = shard.path.substr(0, shard.path.rfind(".tar")) + ".idx";
  std::istringstream index(read_file(index_path));
  std::string line, head = "v1.2 " + std::to_string(shard.num_samples);
  if (!std::getline(index, line) || line != head) fail(index_path, "expected \"" + head + "\" as its first line");
  const std::string header = npy_header(set.shape);
  const auto size = static_cast<size_t>(set.shape.size());
  std::vector<uint8_t> images;  // on their way to the pool, a megabyte at a time
  for (size_t i = 0; i < shard.num_samples; i++) {
    std::string name = "?";
    try {
      if (!std::getline(index, line)) throw std::invalid_argument("its index ends early");
      std::istringstream fields(line);
      fields.imbue(std::locale::classic());  // a program's own may put points into thousands
      const std::string image = member(tar, fields, "npy", name);
      if (image.size() != header.size() + size || image.compare(0, header.size(), header) != 0)
        throw std::invalid_argument("not a uint8 image of the manifest's shape");
      labels[i] = parse_label(member(tar, fields, "cls", name));
      if (labels[i] >= set.num_classes)
        throw std::invalid_argument("label " + std::to_string(labels[i]) + " is outside [0, " +
                                    std::to_string(set.num_classes) + ")");
      images.insert(images.end(), image.begin() + static_cast<std::ptrdiff_t>(header.size()), image.end());
      if (images.size() < kBlock && i + 1 < shard.num_samples) continue;
      const size_t num = images.size() / size;
      pool.set_images(shard.first + i + 1 - num, num, images.data());
      images.clear();
    } catch (const std::invalid_argument &error) {
      fail(shard.path, "sample " + std::to_string(i) + " (" + name + "): " + error.what());
    }
  }
}

}  // namespace

std::shared_ptr<const Pool> read_shards(const std::string &folder, int64_t pad, int num_threads, int device) {
  const std::string path = folder + "/manifest.json";
  Set set;
  try {
    set = parse_manifest(folder, parse_json(read_file(path)));
  } catch (const std::invalid_argument &error) {
    const std::string what = error.what();
    throw std::invalid_argument("pool \"" + folder + "\" is neither registered nor a folder of raw shards: " +
                                (what.rfind(path, 0) == 0 ? "" : path + ": ") + what);
  }
  auto pool = std::make_shared<Pool>(set.num_samples, set.shape, pad, device);
  std::vector<int64_t> labels(set.num_samples);
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> errors(set.shards.size());
  auto work = [&](int) {
    for (size_t i; (i = next++) < set.shards.size();) {
      try {
        read_shard(set.shards[i], set, *pool, &labels[set.shards[i].first]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  run_threads(num_threads, work);
  for (const std::exception_ptr &error : errors)
    if (error) std::rethrow_exception(error);
  pool->set_labels(labels.data(), set.num_classes);
  return pool;
}

}  // namespace fdt
