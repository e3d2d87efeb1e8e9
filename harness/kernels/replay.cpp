// Repeats recorded launches on buffers of exactly the recorded size and contents, so that a sanitizer sees only the kernels.
// Usage: replay FILE WORKERS FUZZ SEED. Compiled together with the kernels' launch functions.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Plan {  // shim::Plan
  unsigned grid, threads, fuzz, workers;
  uint64_t seed;
};
using Launch = const char* (*)(const Plan*, void**);
enum Kind : uint32_t { SCALAR, BUFFER };

struct Reader {
  FILE* file;
  bool ended = false;
  void bytes(void* to, size_t size) {
    if (size && fread(to, 1, size, file) != size) ended = true;
  }
  template <class T>
  T number() {
    T value{};
    bytes(&value, sizeof value);
    return value;
  }
};

}  // namespace

int main(int count, char** words) {
  if (count != 5) return fprintf(stderr, "usage: replay FILE WORKERS FUZZ SEED\n"), 2;
  Reader read{fopen(words[1], "rb")};
  if (!read.file) return perror(words[1]), 2;
  unsigned launches = 0;
  for (;; ++launches) {
    auto length = read.number<uint32_t>();
    if (read.ended) break;
    std::string name(length, ' ');
    read.bytes(name.data(), length);
    Plan plan{};
    plan.grid = read.number<uint32_t>();
    plan.threads = read.number<uint32_t>();
    plan.workers = unsigned(atoi(words[2]));
    plan.fuzz = unsigned(atoi(words[3]));
    plan.seed = strtoull(words[4], nullptr, 10) + launches;
    std::vector<std::unique_ptr<char, void (*)(void*)>> held;
    std::vector<void*> buffers(read.number<uint32_t>()), args(buffers.size());
    for (size_t i = 0; i < args.size(); ++i) {
      auto kind = read.number<uint32_t>();
      auto size = read.number<uint64_t>();
      held.emplace_back(static_cast<char*>(malloc(size)), free);
      read.bytes(held.back().get(), size);
      buffers[i] = held.back().get();
      args[i] = kind == BUFFER ? &buffers[i] : buffers[i];
    }
    if (read.ended) return fprintf(stderr, "replay: the recording ends inside a launch\n"), 2;
    auto launch = reinterpret_cast<Launch>(dlsym(RTLD_DEFAULT, ("launch_" + name).c_str()));
    if (!launch) return fprintf(stderr, "replay: no kernel %s\n", name.c_str()), 2;
    if (const char* failure = launch(&plan, args.data())) return fprintf(stderr, "%s: %s\n", name.c_str(), failure), 3;
  }
  fclose(read.file);
  printf("%u launches\n", launches);
  return 0;
}
