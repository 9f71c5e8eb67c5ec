#include "cpu/system_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

namespace slicellm::cpu {
namespace {

// The first number in a file; false when the file is absent or starts otherwise ("max").
bool read_number(const std::string& path, uint64_t* value) {
  std::ifstream file(path);
  return static_cast<bool>(file >> *value);
}

uint64_t system_available() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  uint64_t kib = 0;
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("MemAvailable:", 0) != 0) continue;
    kib = std::stoull(line.substr(13));
    return kib * 1024;
  }
  return static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// The smallest room left in this process's version 2 control group and its parents.
uint64_t group_available() {
  uint64_t room = UINT64_MAX;
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("0::/", 0) != 0) continue;
    std::string group = line.substr(3);
    while (true) {
      const std::string dir = "/sys/fs/cgroup" + group;
      uint64_t limit = 0, used = 0;
      if (read_number(dir + "/memory.max", &limit) && read_number(dir + "/memory.current", &used)) {
        room = std::min(room, limit > used ? limit - used : 0);
      }
      if (group.empty()) break;
      group.resize(group.rfind('/'));
    }
  }
  return room;
}

}  // namespace

size_t available_memory() {
  return static_cast<size_t>(std::min(system_available(), group_available()));
}

}  // namespace slicellm::cpu
