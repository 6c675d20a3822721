// The asynchronous copies of a thread (cp.async). They are done as late as is allowed, and what they will overwrite is
// destroyed as early as is allowed: who reads too early, or overwrites what others still read, is found out.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

#include "grid.h"

namespace skim::on_cpu {

class Copies {
 public:
  static constexpr size_t kMaxBytes = 16;

  void Start(void* to, const void* from, size_t bytes) {
    Copy copy{static_cast<char*>(to), bytes, {}};
    std::memcpy(copy.content.data(), from, bytes);
    std::memset(to, kPoison, bytes);
    open_.push_back(copy);
  }

  void Commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  // Does all groups but the newest `pending`.
  void Wait(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front()) {
      for (const Copy& copy : groups_.front()) std::memcpy(copy.to, copy.content.data(), copy.bytes);
    }
  }

  void Drop() {
    open_.clear();
    groups_.clear();
  }

 private:
  struct Copy {
    char* to;
    size_t bytes;
    std::array<char, kMaxBytes> content;
  };

  std::vector<Copy> open_;  // not committed yet
  std::deque<std::vector<Copy>> groups_;
};

}  // namespace skim::on_cpu
