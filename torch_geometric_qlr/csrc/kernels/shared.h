// What the kernels of all instruction sets are written with, and need not be built for one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../layout.h"
#include "../schedule.h"
#include "gather.h"
#include "table.h"
