// What every verb includes, parsed once; see base/precompiled.h.
#pragma once
#include <CLI/CLI.hpp>

#include "base/precompiled.h"
