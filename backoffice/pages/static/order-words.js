// The words for an order and its money, in every combination of their states.

import { money } from "./page.js";

const HEADLINES = {
  reserved: ["Reserved for you.", "warn"],
  confirming: ["Your payment is being confirmed …", "warn"],
  paid: ["Paid. Thank you!", "good"],
  refund_due: ["Your money goes back to you.", "warn"],
  refunded: ["Refunded.", "quiet"],
  cancelled: ["Cancelled.", "quiet"],
  expired: ["Expired: the hold ran out and the units are on sale again.", "bad"],
  rejected: ["We are sorry, this order could not be fulfilled.", "bad"],
};

/**
 * The text of an order's state, its kind for colours, and notes. `visited`: this tab was on the provider's page for the
 * order. `confirming`: it has just come back from there, so that a payment may arrive any moment.
 */
export function told(order, { visited, confirming }) {
  const [text, kind] = HEADLINES[headline(order, confirming)];
  return { text, kind, notes: [note(order, { visited, confirming }), refunds(order)].filter(Boolean) };
}

/** The state of an order in a word or two, for a list. */
export function inShort(order) {
  const refund = { refund_due: "refund under way", refunded: "refunded" }[order.payment];
  if (refund) return `${order.status}, ${refund}`;
  if (order.refund_due_minor) return `${order.status}, part of the money goes back`;
  return order.refunded_minor ? `${order.status}, part of the money went back` : order.status;
}

function headline(order, confirming) {
  if (order.status === "reserved") return confirming || order.payment === "captured" ? "confirming" : "reserved";
  if (order.status === "paid" && (order.payment === "refund_due" || order.payment === "refunded")) return order.payment;
  return order.status;
}

function note(order, { visited, confirming }) {
  const returns = order.refund_due_minor || order.refunded_minor;
  switch (order.status) {
    case "reserved":
      if (order.payment === "captured") return "";
      if (returns) return "A payment did not match this order. Please pay again, unless this page shows the order as paid soon.";
      if (confirming) return "This takes a few seconds. If you have not paid, you can still do so.";
      if (visited) return "No payment has arrived so far. If you have paid, this page shows the payment as soon as it arrives. Otherwise pay before the hold ends.";
      return "Pay before the hold ends. If you have just paid, this page shows the payment within seconds.";
    case "expired":
      if (returns) return "A payment arrived after the hold had run out.";
      return visited ? "If you have paid, your money goes back to you without further steps." : "";
    case "cancelled":
      if (returns) return "A payment arrived although the order is cancelled.";
      return visited ? "If you have paid, your money goes back to you without further steps." : "";
    case "rejected":
      return returns ? "" : "You will not be charged.";
    default:
      return "";
  }
}

function refunds(order) {
  const due = order.refund_due_minor ? money(order.refund_due_minor, order.currency) : "";
  const back = order.refunded_minor ? money(order.refunded_minor, order.currency) : "";
  if (due && back) return `${back} went back to you. Another ${due} goes back to you.`;
  if (due) return `${due} goes back to you.`;
  return back ? `${back} went back to you. Your bank may take some days to show this.` : "";
}
